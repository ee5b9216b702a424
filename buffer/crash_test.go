package buffer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gatepost"
)

// The tests below need a process of their own to kill or to limit: this test binary, run again.
const childEnv = "GATEPOST_BUFFER_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "put":
		childPuts(os.Args[len(os.Args)-1])
	}
}

// childPuts puts punches from four goroutines until it is killed; it prints the number of each that was acknowledged.
func childPuts(path string) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt) // never sent: the parent kills
	defer stop()
	s, err := Open(ctx, path, Options{})
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(1)
	}
	if err := s.SetUplinks(ctx, []Uplink{{ID: "cloud", Required: true, FromOldest: true}}); err != nil {
		fmt.Println("uplinks:", err)
		os.Exit(1)
	}
	go s.Run(ctx)
	start := int(s.Head())
	for w := range 4 {
		go func() {
			for n := start + 1; ; n++ {
				e := punch(fmt.Sprint("SN", w), n)
				if _, err := s.Put(ctx, e); err != nil {
					fmt.Println("put:", err)
					os.Exit(1)
				}
				os.Stdout.WriteString(fmt.Sprintf("acked %d %d\n", w, n)) // one write each: lines do not mix
				if n%3 == 0 {
					s.SetPlace("cloud", at(s.Head()/2))
				}
			}
		}()
	}
	<-ctx.Done()
}

func child(t testing.TB, mode, path string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], path)
	cmd.Env = append(os.Environ(), childEnv+"="+mode)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

func TestKilledAtAnyMomentLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	acked := make(map[[2]int]bool)
	for round := range 20 {
		cmd, out := child(t, "put", path)
		lines, mine := bufio.NewScanner(out), 0
		for lines.Scan() {
			var w, n int
			if _, err := fmt.Sscanf(lines.Text(), "acked %d %d", &w, &n); err != nil {
				t.Fatalf("the child said %q", lines.Text())
			}
			acked[[2]int{w, n}] = true
			if mine++; mine == 5+13*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		cmd.Wait() // it was killed
		checkAcked(t, path, acked)
	}
	t.Logf("%d acknowledged, all there", len(acked))
}

func checkAcked(t testing.TB, path string, acked map[[2]int]bool) {
	t.Helper()
	s, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	there, last := make(map[gatepost.ID]bool), int64(0)
	for _, r := range readAll(t, s) {
		if there[r.ID] || r.Seq != last+1 && last != 0 {
			t.Fatalf("record %d after %d, double %v", r.Seq, last, there[r.ID])
		}
		there[r.ID], last = true, r.Seq
	}
	first := s.Stats().Head - s.Stats().Records
	if d := s.Place("cloud").Done; first > d {
		t.Fatalf("records up to %d are gone, confirmed are %d", first, d)
	}
	lost := 0
	for a := range acked {
		e := punch(fmt.Sprint("SN", a[0]), a[1])
		has, err := s.Has(t.Context(), e.Source, e.Minute, e.ID)
		if err != nil {
			t.Fatal(err)
		}
		if !has || !there[e.ID] && first == 0 {
			lost++
		}
	}
	if lost > 0 {
		t.Fatalf("%d of %d acknowledged records are lost", lost, len(acked))
	}
}

// mount mounts a small file system where that is allowed, and says whether it is.
func mount(t testing.TB, dir, options string) bool {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		return false
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return true
}

// TestAFullDiskKeepsWhatItHas: with the right to mount, on a full file system; else the file may not grow any more, which
// SQLite reports alike.
func TestAFullDiskKeepsWhatItHas(t *testing.T) {
	dir := t.TempDir()
	mounted := mount(t, dir, "size=1m")
	path := filepath.Join(dir, "records.db")
	s := open(t, path, options(t))
	if !mounted {
		if _, err := s.f.w.ExecContext(t.Context(), "PRAGMA max_page_count=300"); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	var err error
	for ; err == nil; n += 100 {
		if n > 100_000 {
			t.Fatal("never full")
		}
		_, err = s.Put(t.Context(), punches("SN1", n, n+100)...)
	}
	n -= 100
	if !strings.HasPrefix(err.Error(), "the disk is full: "+path+": ") || gatepost.ClassOf(err) != gatepost.Temporary ||
		gatepost.HintOf(err) != "free some space on the disk that holds "+dir+"; until then new punches stay in the terminals" {
		t.Errorf("%v (%s)", err, gatepost.HintOf(err))
	}
	if got := checkSalvaged(t, s); got != n {
		t.Errorf("%d records of %d", got, n)
	}
	s.Close()
	if mounted {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, path, options(t)) // room again
	put(t, s, 100, punches("SN1", n, n+100)...)
	if got := checkSalvaged(t, s); got != n+100 {
		t.Errorf("%d records of %d", got, n+100)
	}
}

// TestAReadOnlyDiskIsSaid: with the right to mount, on one; else in a directory that may not be written.
func TestAReadOnlyDiskIsSaid(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "records.db")
	if mount(t, dir, "size=2m") {
		makeFile(t, path, 10, 0)
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), path, options(t))
		if err == nil || !strings.HasPrefix(err.Error(), "the disk is read-only: "+path+": ") ||
			gatepost.HintOf(err) != "an SD card that wears out turns read-only: look at dmesg, replace the card; until then new punches stay in the terminals" {
			t.Errorf("%v (%s)", err, gatepost.HintOf(err))
		}
		return
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir, 0o700)
	_, err := Open(t.Context(), path, options(t))
	if !errors.Is(err, os.ErrPermission) || gatepost.HintOf(err) != "give the user that gatepost runs as the directory "+dir {
		t.Errorf("%v (%s)", err, gatepost.HintOf(err))
	}
}

func TestADirectoryThatIsMissingIsSaid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gone", "records.db")
	_, err := Open(t.Context(), path, options(t))
	if err == nil || !strings.HasPrefix(err.Error(), "open "+path+": ") || gatepost.HintOf(err) != "the directory "+filepath.Dir(path)+" must exist" {
		t.Errorf("%v (%s)", err, gatepost.HintOf(err))
	}
}

// TestAnotherProgramHoldsTheFile: the agent has its own lock; this is somebody's database tool.
func TestAnotherProgramHoldsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, path, options(t))
	other, err := openFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	if _, err := other.begin.ExecContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.f.w.ExecContext(t.Context(), "PRAGMA busy_timeout=10"); err != nil {
		t.Fatal(err)
	}
	_, err = s.Put(t.Context(), punch("SN1", 1))
	if err == nil || !strings.HasPrefix(err.Error(), "another program has locked "+path+": ") {
		t.Errorf("%v", err)
	}
	if _, err := other.rollback.ExecContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, s, 1, punch("SN1", 1))
}
