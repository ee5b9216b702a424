package buffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost"
)

var day0 = time.Date(2026, 11, 22, 8, 0, 0, 0, time.FixedZone("", 7*3600))

// punch makes the n-th punch of a source; the same n is the same punch.
func punch(source string, n int) Entry {
	at := day0.Add(time.Duration(n) * 20 * time.Second)
	wall := gatepost.WallOf(at)
	return Entry{
		Stored: gatepost.Stored{
			ID: gatepost.NewID(source, gatepost.KindPunch, fmt.Sprint(n)), Device: "gate", Kind: gatepost.KindPunch,
			Time: at, TimeRaw: string(wall), Received: at.UTC().Truncate(time.Millisecond), Clock: gatepost.ClockSynced,
			Data: fmt.Appendf(nil, `{"user":"%d","method":"finger","direction":"in"}`, n),
		},
		Source: source, Minute: wall.Minute(),
	}
}

func punches(source string, from, to int) (es []Entry) {
	for n := from; n < to; n++ {
		es = append(es, punch(source, n))
	}
	return es
}

func ofKind(kind gatepost.Kind, n int) Entry {
	e := punch(string(kind), n)
	e.Kind, e.Source = kind, ""
	return e
}

func options(t testing.TB) Options {
	return Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: time.Now}
}

func open(t testing.TB, path string, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func put(t testing.TB, s *Store, want int, es ...Entry) {
	t.Helper()
	added, err := s.Put(t.Context(), es...)
	if err != nil {
		t.Fatal(err)
	}
	if added != want {
		t.Fatalf("put %d entries: %d added, want %d", len(es), added, want)
	}
}

func readAll(t testing.TB, s *Store) (rs []gatepost.Stored) {
	t.Helper()
	for after := int64(0); ; after = rs[len(rs)-1].Seq {
		page, err := s.Read(t.Context(), after, s.Head(), 100, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			return rs
		}
		rs = append(rs, page...)
	}
}

func TestRecordsComeBackAsTheyWerePut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, path, options(t))
	es := punches("SN1", 0, 40)
	for i, change := range []func(*Entry){
		func(e *Entry) { e.Time, e.TimeRaw, e.TimeMark = time.Time{}, "2026-02-31T10:00:00", "invalid" },
		func(e *Entry) { e.TimeRaw = "" },
		func(e *Entry) { e.TimeRaw = "=" },
		func(e *Entry) { e.TimeRaw = "22/11/26 8h" },
		func(e *Entry) { e.TimeMark = gatepost.MarkRepeat },
		func(e *Entry) { e.Device, e.Kind = "", "odd" },
		func(e *Entry) { e.Clock, e.Boot, e.Mono = gatepost.ClockUnsynced, "b00t", 1234*time.Millisecond },
		func(e *Entry) { e.Skew, e.SkewSet = -90*time.Minute, true },
		func(e *Entry) { e.SkewSet = true },
		func(e *Entry) { e.Time = e.Time.UTC() },
		func(e *Entry) { e.Data = fmt.Appendf(nil, `{"big":"%s"}`, strings.Repeat("x", 5000)) },
		func(e *Entry) { e.Device = "caf\u00e9" },
	} {
		change(&es[i])
	}
	put(t, s, 40, es...)
	check := func() {
		t.Helper()
		got := readAll(t, s)
		if len(got) != len(es) {
			t.Fatalf("%d records, want %d", len(got), len(es))
		}
		for i := range got {
			want := es[i].Stored
			want.Log, want.Seq = s.Log(), int64(i+1)
			if w, g := line(want), line(got[i]); w != g {
				t.Errorf("record %d:\n got %s\nwant %s", i+1, g, w)
			}
		}
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, options(t))
	check()
}

func line(r gatepost.Stored) string { return string(r.AppendJSON(nil, "a", false)) }

func TestDoublesAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, path, options(t))
	put(t, s, 100, punches("SN1", 0, 100)...)
	put(t, s, 0, punches("SN1", 0, 100)...)
	put(t, s, 10, punches("SN1", 90, 110)...)
	put(t, s, 1, punch("SN1", 500), punch("SN1", 500))
	put(t, s, 100, punches("SN2", 0, 100)...)
	free := punch("", 1)
	put(t, s, 2, free, free)
	s.Close()
	s = open(t, path, options(t))
	put(t, s, 1, punches("SN1", 0, 111)...)
	if n, has := s.Stats().Seen, s.Stats(); n != 212 || has.Records != 214 || has.Head != 214 {
		t.Errorf("stats %+v, want 212 seen of 214", has)
	}
	e := punch("SN1", 5)
	for _, c := range []struct {
		source string
		minute int64
		want   bool
	}{{"SN1", e.Minute, true}, {"SN2", e.Minute, false}, {"SN3", e.Minute, false}, {"SN1", e.Minute + 1, false}} {
		if has, err := s.Has(t.Context(), c.source, c.minute, e.ID); err != nil || has != c.want {
			t.Errorf("has %s %d: %v, %v", c.source, c.minute, has, err)
		}
	}
}

func TestPruneForgetsWholeDays(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records.db"), options(t))
	const perDay = 24 * 60 * 3
	put(t, s, 3*perDay, punches("SN1", 0, 3*perDay)...)
	put(t, s, 10, punches("SN2", 0, 10)...)
	first := punch("SN1", 0).Minute / gatepost.MinutesPerDay
	var asked []int64
	n, err := s.Prune(t.Context(), "SN1", func(day int64) bool {
		asked = append(asked, day)
		return day != first+1
	})
	if err != nil || n != perDay || !slices.Equal(slices.Compact(asked), []int64{first, first + 1, first + 2, first + 3}) {
		t.Fatalf("pruned %d, asked %v: %v", n, asked, err)
	}
	if st := s.Stats(); st.Seen != 2*perDay+10 {
		t.Errorf("%d rows left", st.Seen)
	}
	put(t, s, perDay, punches("SN1", 0, 3*perDay)...)
	if n, err := s.Prune(t.Context(), "nobody", func(int64) bool { return false }); n != 0 || err != nil {
		t.Errorf("pruned %d of nobody: %v", n, err)
	}
}

func TestReadKeepsItsBounds(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records.db"), options(t))
	put(t, s, 100, punches("SN1", 0, 100)...)
	size := len(punch("SN1", 50).Data)
	for _, c := range []struct {
		after, upto       int64
		records, bytes    int
		wantFirst, wantIn int64
	}{
		{0, 100, 10, 1 << 20, 1, 10},
		{95, 1000, 10, 1 << 20, 96, 5},
		{10, 12, 10, 1 << 20, 11, 2},
		{49, 100, 100, 3 * size, 50, 3},
		{49, 100, 100, 0, 50, 1},
		{100, 200, 10, 1 << 20, 0, 0},
		{5, 5, 10, 1 << 20, 0, 0},
		{5, 9, 0, 1 << 20, 0, 0},
	} {
		rs, err := s.Read(t.Context(), c.after, c.upto, c.records, c.bytes)
		if err != nil || int64(len(rs)) != c.wantIn || len(rs) > 0 && rs[0].Seq != c.wantFirst {
			t.Errorf("read %+v: %d records, %v", c, len(rs), err)
		}
	}
}

func TestWaitReturnsWhenARecordIsOnDisk(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records.db"), options(t))
	got := make(chan error, 1)
	go func() { got <- s.Wait(t.Context(), 2) }()
	put(t, s, 2, punches("SN1", 0, 2)...)
	select {
	case err := <-got:
		t.Fatalf("returned before: %v", err)
	default:
	}
	put(t, s, 1, punch("SN1", 2))
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Wait(ctx, 3); !errors.Is(err, context.Canceled) {
		t.Fatalf("wait: %v", err)
	}
	if _, err := s.Put(ctx, punch("SN1", 3)); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatalf("put: %v", err)
	}
}

// TestManyPutAtOnce also is what -race looks at: writers, readers, places and counters together.
func TestManyPutAtOnce(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records.db"), options(t))
	if err := s.SetUplinks(t.Context(), []Uplink{{ID: "cloud", Required: true, FromOldest: true}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	const writers, each = 16, 60
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				if _, err := s.Put(t.Context(), punches(fmt.Sprint("SN", w), n, n+2)...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	got := make(map[gatepost.ID]bool)
	for after := int64(0); len(got) < writers*(each+1); {
		if err := s.Wait(t.Context(), after); err != nil {
			t.Fatal(err)
		}
		rs, err := s.Read(t.Context(), after, s.Head(), 50, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rs {
			if r.Seq != after+1 || got[r.ID] {
				t.Fatalf("record %d after %d, double %v", r.Seq, after, got[r.ID])
			}
			after, got[r.ID] = r.Seq, true
		}
		s.SetPlace("cloud", at(after))
		s.Stats()
	}
	wg.Wait()
	cancel()
	running.Wait()
	if b := s.Stats().Uplinks["cloud"]; b.Records != 0 {
		t.Errorf("%d waiting", b.Records)
	}
}

func TestASyncThatFailsAcknowledgesNothing(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records.db"), options(t))
	put(t, s, 1, punch("SN1", 0))
	s.sync = func(*file) error { return errors.New("input/output error") }
	if _, err := s.Put(t.Context(), punch("SN1", 1)); err == nil {
		t.Fatal("acknowledged without a sync")
	}
	if s.Head() != 1 {
		t.Fatalf("readers see record %d", s.Head())
	}
	s.sync = (*file).sync
	put(t, s, 0, punch("SN1", 1)) // it had been committed; now it is synced too
	put(t, s, 1, punch("SN1", 2))
	if n := len(readAll(t, s)); n != 3 {
		t.Errorf("%d records", n)
	}
}

func TestNumbersOnlyGrow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, path, options(t))
	if err := s.SetUplinks(t.Context(), []Uplink{{ID: "cloud", Required: true}}); err != nil {
		t.Fatal(err)
	}
	put(t, s, 3000, punches("SN1", 0, 3000)...)
	s.SetPlace("cloud", at(3000))
	if err := s.upkeep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Records != 0 || st.Head != 3000 {
		t.Fatalf("stats %+v", st)
	}
	log := s.Log()
	s.Close()
	s = open(t, path, options(t))
	put(t, s, 0, punches("SN1", 0, 3000)...)
	put(t, s, 1, punch("SN1", 3000))
	if s.Head() != 3001 || s.Log() != log || log == "" {
		t.Errorf("head %d of %s, want 3001 of %s", s.Head(), s.Log(), log)
	}
}

func TestParkedRecordsAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, path, options(t))
	put(t, s, 2, punches("SN1", 0, 2)...)
	rs := readAll(t, s)
	for _, r := range rs {
		if err := s.Park(t.Context(), "cloud", r, "payload too large"); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s = open(t, path, options(t))
	ps, err := s.Parked(t.Context(), 10)
	if err != nil || len(ps) != 2 || ps[0].Uplink != "cloud" || ps[0].Reason != "payload too large" || line(ps[0].Stored) != line(rs[1]) {
		t.Fatalf("parked %+v: %v", ps, err)
	}
	if n := s.Stats().Parked; n != 2 {
		t.Errorf("%d counted", n)
	}
}

// run starts Run, which ends with the test or stop.
func run(t testing.TB, s *Store, done chan<- error) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		done <- s.Run(ctx)
		close(ended)
	}()
	stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(stop)
	return stop
}

func TestPragmas(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records.db"), options(t))
	for name, want := range map[string]string{
		"page_size": "1024", "journal_mode": "wal", "synchronous": "1", "cache_size": "-1000", "wal_autocheckpoint": "0", "busy_timeout": "5000",
	} {
		var got string
		if err := s.f.w.QueryRowContext(t.Context(), "PRAGMA "+name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %s, want %s: %v", name, got, want, err)
		}
	}
	s.Close()
	if _, err := os.Stat(s.path + "-wal"); err != nil {
		t.Error("the write-ahead log is deleted at the end and would have to grow again:", err)
	}
}
