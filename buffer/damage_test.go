package buffer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost"
)

// makeFile makes a closed file of n punches of which the first delivered are confirmed.
func makeFile(t testing.TB, path string, n, delivered int) {
	t.Helper()
	s := open(t, path, Options{})
	if err := s.SetUplinks(t.Context(), []Uplink{{ID: "cloud", Required: true}}); err != nil {
		t.Fatal(err)
	}
	for from := 0; from < n; from += 500 {
		put(t, s, min(n, from+500)-from, punches("SN1", from, min(n, from+500))...)
	}
	s.SetPlace("cloud", at(int64(delivered)))
	if err := s.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// checkpointed makes the file hold everything that its write-ahead log does.
func checkpointed(t testing.TB, path string) {
	t.Helper()
	f, err := openFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.checkpoint(t.Context(), "TRUNCATE"); err != nil {
		t.Fatal(err)
	}
	f.close()
}

func overwrite(t testing.TB, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestDamagedFileIsSetAside(t *testing.T) {
	const n, delivered = 5000, 1000
	for _, c := range []struct {
		name    string
		harm    func(t *testing.T, path string)
		atLeast int // undelivered records that come over
	}{
		{"garbage header", func(t *testing.T, path string) {
			overwrite(t, path, 0, []byte(strings.Repeat("not a database. ", 64)))
		}, n - delivered},
		{"garbage file", func(t *testing.T, path string) {
			overwrite(t, path, 0, []byte(strings.Repeat("not a database. ", 64*1200)))
		}, 0},
		{"truncated", func(t *testing.T, path string) {
			if err := os.Truncate(path, 400<<10); err != nil {
				t.Fatal(err)
			}
		}, 500},
		{"cut in a page", func(t *testing.T, path string) {
			if err := os.Truncate(path, 400<<10+77); err != nil {
				t.Fatal(err)
			}
		}, 500},
		{"almost empty", func(t *testing.T, path string) {
			if err := os.Truncate(path, 100); err != nil {
				t.Fatal(err)
			}
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "records.db")
			makeFile(t, path, n, delivered)
			checkpointed(t, path)
			c.harm(t, path)
			os.Remove(path + "-shm")
			os.Remove(path + "-wal")
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			o := options(t)
			o.Now = func() time.Time { return day0 }
			var told []gatepost.Event
			o.Event = func(e gatepost.Event) { told = append(told, e) }
			s := open(t, path, o)
			aside := path + ".damaged-20261122T010000Z"
			if after, err := os.ReadFile(aside); err != nil || string(after) != string(before) {
				t.Errorf("the damaged file is not kept as it was: %v", err)
			}
			if err := s.SetUplinks(t.Context(), []Uplink{{ID: "cloud", Required: true}}); err != nil {
				t.Fatal(err)
			}
			got := checkSalvaged(t, s)
			if got < c.atLeast {
				t.Errorf("%d records salvaged, want at least %d", got, c.atLeast)
			}
			t.Logf("%d of %d salvaged, %d seen", got, n-delivered, s.Stats().Seen)
			if b := s.Stats().Uplinks["cloud"]; int(b.Records) != got {
				t.Errorf("%d wait for the uplink, want %d", b.Records, got)
			}
			s.tell()
			if len(told) != 1 || told[0].Name != "buffer_damaged" || told[0].Detail != (Damage{File: aside, Salvaged: int64(got)}) {
				t.Errorf("told %+v", told)
			}
			if _, err := s.Put(t.Context(), punches("SN1", 0, n+1)...); err != nil {
				t.Error(err)
			}
		})
	}
}

// checkSalvaged counts the records and complains about any that was not put like that.
func checkSalvaged(t testing.TB, s *Store) int {
	t.Helper()
	rs := readAll(t, s)
	ids := make(map[gatepost.ID]bool)
	for _, r := range rs {
		var n int
		if _, err := fmt.Sscanf(string(r.Data), `{"user":"%d"`, &n); err != nil {
			t.Fatalf("record %d: %s", r.Seq, r.Data)
		}
		want := punch("SN1", n).Stored
		want.Seq, want.Log = r.Seq, s.Log()
		if line(r) != line(want) || ids[r.ID] {
			t.Fatalf("record %d, double %v:\n got %s\nwant %s", r.Seq, ids[r.ID], line(r), line(want))
		}
		ids[r.ID] = true
	}
	return len(rs)
}

func TestDamageFoundInServiceLosesOnlyWhatItHit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	const n, delivered = 5000, 1000
	makeFile(t, path, n, delivered)
	checkpointed(t, path)
	// Flip whole pages in the middle of the records.
	for _, page := range []int64{300, 301, 500} {
		overwrite(t, path, page*pageSize, []byte(strings.Repeat("\xa5", pageSize)))
	}
	s := open(t, path, options(t))
	if err := s.SetUplinks(t.Context(), []Uplink{{ID: "cloud", Required: true}}); err != nil {
		t.Fatal(err)
	}
	log, head := s.Log(), s.Head()
	c := checker{}
	var err error
	for range 100 {
		if err = c.step(t.Context(), s); err != nil {
			break
		}
	}
	if err == nil || s.Log() == log {
		t.Fatalf("the check found nothing: %v", err)
	}
	s.SetPlace("cloud", at(head)) // by someone who does not know yet
	got := checkSalvaged(t, s)
	if got < n-delivered-200 {
		t.Errorf("%d salvaged", got)
	}
	if rs := readAll(t, s); rs[0].Seq != head+1 {
		t.Errorf("starts at %d, want %d", rs[0].Seq, head+1)
	}
	if b := s.Stats().Uplinks["cloud"]; int(b.Records) != got {
		t.Errorf("%d wait, want %d", b.Records, got)
	}
	// The refusal of doubles came over: only what was damaged may be stored again.
	added, err := s.Put(t.Context(), punches("SN1", 0, n)...)
	if err != nil || added > 400 {
		t.Errorf("%d stored again, %v", added, err)
	}
}

// TestStopInTheMiddleOfARepair: whatever the moment, the next start has either all or starts over.
func TestStopInTheMiddleOfARepair(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "records.db")
	makeFile(t, path, 100, 0)
	t.Run("before the new file is finished", func(t *testing.T) {
		if err := os.WriteFile(path+".new", []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, path, options(t))
		if n := checkSalvaged(t, s); n != 100 {
			t.Errorf("%d records", n)
		}
		if _, err := os.Stat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
			t.Error("the half file is still there")
		}
		s.Close()
	})
	t.Run("between the renames", func(t *testing.T) {
		checkpointed(t, path)
		if err := os.Rename(path, path+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+"-wal", []byte(strings.Repeat("old", 5000)), 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, path, options(t))
		if n := checkSalvaged(t, s); n != 100 {
			t.Errorf("%d records", n)
		}
	})
}

func TestAForeignFileIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	makeFile(t, path, 1, 0)
	f, err := openFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.w.ExecContext(t.Context(), "PRAGMA user_version=99"); err != nil {
		t.Fatal(err)
	}
	f.close()
	_, err = Open(t.Context(), path, Options{})
	want := path + ": not a record buffer of this version of gatepost"
	if err == nil || err.Error() != want || gatepost.ClassOf(err) != gatepost.Misconfigured {
		t.Errorf("%v, want %s", err, want)
	}
}

// FuzzDamage overwrites parts of a file: Open and use never panic or hang, and nothing is read that was never put.
func FuzzDamage(f *testing.F) {
	path := filepath.Join(f.TempDir(), "records.db")
	makeFile(f, path, 300, 0)
	checkpointed(f, path)
	image, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint64(1), uint32(0), []byte("SQLite"))
	f.Add(uint64(2), uint32(100), []byte{0xff, 0xff})
	f.Add(uint64(3), uint32(40*1024), []byte{0})
	f.Fuzz(func(t *testing.T, seed uint64, offset uint32, b []byte) {
		path := filepath.Join(t.TempDir(), "records.db")
		harmed := append([]byte(nil), image...)
		copy(harmed[int(offset)%len(harmed):], b)
		r := rand.New(rand.NewPCG(seed, 0))
		for range seed % 4 {
			harmed[r.IntN(len(harmed))] ^= 1 << r.IntN(8)
		}
		if err := os.WriteFile(path, harmed, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), path, Options{})
		if err != nil {
			if !errors.Is(err, errForeign) {
				t.Fatal(err)
			}
			return
		}
		defer s.Close()
		for after := int64(0); ; {
			rs, err := s.Read(t.Context(), after, s.Head(), 100, 1<<20)
			if err != nil || len(rs) == 0 {
				break
			}
			after = rs[len(rs)-1].Seq
		}
		if _, err := s.Put(t.Context(), punches("SN2", 0, 20)...); err != nil {
			t.Fatal(err)
		}
	})
}
