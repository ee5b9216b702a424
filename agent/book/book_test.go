package book

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gatepost"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func open(t testing.TB, path string) *Book {
	t.Helper()
	b, err := Open(t.Context(), path, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() }) // twice, where a test closed it
	return b
}

// reopen closes b and opens its file again.
func reopen(t testing.TB, b *Book) *Book {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, b.path)
}

func newBook(t testing.TB) *Book {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "book.db"))
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func unlock(id string) gatepost.Command {
	return gatepost.Command{ID: id, Device: "gate", Verb: "unlock", Issued: noon, TTL: 10 * time.Second, Origin: "cloud"}
}

func done(id string) gatepost.Result {
	return gatepost.Result{ID: id, Device: "gate", Verb: "unlock", Status: gatepost.StatusDone}
}

func TestDevices(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	if _, known, err := b.Device(ctx, "gate"); known || err != nil {
		t.Fatalf("a new book knows a device: %v, %v", known, err)
	}
	d := Device{ID: "gate", Identity: "A6F5", Driver: "zk", Model: "K14", Firmware: "6.60", Doors: 1, LastContact: noon}
	ok(t, b.SetDevice(ctx, d))
	b = reopen(t, b)
	want := d
	want.FirstSeen = noon
	check := func(what string) {
		t.Helper()
		got, known, err := b.Device(ctx, "gate")
		ok(t, err)
		if diff := cmp.Diff(want, got); !known || diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	check("reopened")

	wrote := b.written
	d.LastContact = noon.Add(59 * time.Minute)
	ok(t, b.SetDevice(ctx, d))
	check("a contact within the hour")
	if b.written != wrote {
		t.Error("a contact within the hour was written")
	}
	d.LastContact = noon.Add(61 * time.Minute)
	ok(t, b.SetDevice(ctx, d))
	want.LastContact = noon.Add(time.Hour)
	check("a contact an hour later")
	d.LastContact = noon.Add(-5 * time.Hour)
	ok(t, b.SetDevice(ctx, d))
	check("the clock went back")

	d = Device{ID: "gate", Identity: "B777", Driver: "zk", LastContact: noon.Add(48 * time.Hour)}
	ok(t, b.SetDevice(ctx, d))
	want = d
	want.FirstSeen = d.LastContact
	check("another terminal")
}

func TestCursors(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	ok(t, b.SetCursor(ctx, "gate", "A", "17"))
	ok(t, b.SetCursor(ctx, "gate", "B", "3"))
	ok(t, b.SetCursor(ctx, "gate", "A", "18"))
	wrote := b.written
	ok(t, b.SetCursor(ctx, "gate", "A", "18"))
	if b.written != wrote {
		t.Error("an unchanged cursor was written")
	}
	b = reopen(t, b)
	for _, c := range []struct {
		id             gatepost.DeviceID
		identity, want string
	}{{"gate", "A", "18"}, {"gate", "B", "3"}, {"gate", "C", ""}, {"door", "A", ""}} {
		if got, err := b.Cursor(ctx, c.id, c.identity); got != c.want || err != nil {
			t.Errorf("cursor of %s, %s: %q, %v; want %q", c.id, c.identity, got, err, c.want)
		}
	}
}

func TestKeyValue(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	ok(t, b.KeyValue("gate").Put(ctx, "stamp", "1"))
	ok(t, b.KeyValue("gate").Put(ctx, "stamp", "2"))
	ok(t, b.KeyValue("door").Put(ctx, "stamp", "9"))
	b = reopen(t, b)
	for key, want := range map[string]string{"stamp": "2", "other": ""} {
		if got, err := b.KeyValue("gate").Get(ctx, key); got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", key, got, err, want)
		}
	}
}

func TestLastTimeOnlyRises(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	for _, step := range []struct{ set, want time.Time }{
		{noon, noon},
		{noon.Add(59 * time.Minute), noon},
		{noon.Add(time.Hour), noon.Add(time.Hour)},
		{noon.Add(-24 * time.Hour), noon.Add(time.Hour)},
	} {
		ok(t, b.SetLastTime(ctx, step.set))
		if got, err := b.LastTime(ctx); !got.Equal(step.want) || err != nil {
			t.Errorf("after %v: %v, %v; want %v", step.set, got, err, step.want)
		}
	}
}

func TestLedger(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	c := unlock("c1")
	c.Args = []byte(`{"door":1,"pin":"4711"}`)
	known, err := b.Begin(ctx, c, noon)
	ok(t, err)
	if known != nil {
		t.Fatalf("a new command is known: %+v", known)
	}
	kept := c
	kept.Args = nil
	want := &Entry{Command: kept, Received: noon, State: Started}
	for _, again := range []string{"same run", "after a restart"} {
		known, err = b.Begin(ctx, c, noon.Add(time.Minute))
		ok(t, err)
		if diff := cmp.Diff(want, known); diff != "" {
			t.Errorf("begun again, %s: %s", again, diff)
		}
		b = reopen(t, b)
	}

	ok(t, b.Finish(ctx, done("c1"), noon.Add(time.Second)))
	want.State, want.Result, want.Finished = Final, done("c1"), noon.Add(time.Second)
	b = reopen(t, b)
	known, err = b.Begin(ctx, c, noon)
	ok(t, err)
	if diff := cmp.Diff(want, known); diff != "" {
		t.Errorf("finished: %s", diff)
	}
	if err := b.Finish(ctx, gatepost.Result{ID: "c1", Status: gatepost.StatusFailed}, noon); err == nil {
		t.Error("a second result was taken")
	}
	if err := b.Finish(ctx, done("c9"), noon); err == nil {
		t.Error("a result was taken for a command never begun")
	}
	if err := b.Finish(ctx, gatepost.Result{ID: "c1", Status: gatepost.StatusAccepted}, noon); err == nil {
		t.Error("a status that is not final was taken")
	}

	es, err := b.Unfinished(ctx)
	ok(t, err)
	if diff := cmp.Diff([]Entry{*want}, es); diff != "" {
		t.Errorf("unfinished: %s", diff)
	}
	ok(t, b.Reported(ctx, "c1"))
	if es, err := b.Unfinished(ctx); len(es) != 0 || err != nil {
		t.Errorf("unfinished after it was reported: %v, %v", es, err)
	}
	if raw, err := os.ReadFile(b.path + "-wal"); err != nil || bytes.Contains(raw, []byte("4711")) {
		t.Errorf("the arguments of a command are in the file (%v)", err)
	}
}

func TestFinishNew(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	r := gatepost.Result{ID: "late", Verb: "unlock", Status: gatepost.StatusExpired, Error: &gatepost.ResultError{Code: "expired", Message: "too late"}}
	if known, err := b.FinishNew(ctx, unlock("late"), r, noon); known != nil || err != nil {
		t.Fatalf("%+v, %v", known, err)
	}
	b = reopen(t, b)
	known, err := b.Begin(ctx, unlock("late"), noon)
	ok(t, err)
	if known == nil || known.Result.Status != gatepost.StatusExpired {
		t.Errorf("an expired command could be begun: %+v", known)
	}
	_, err = b.Begin(ctx, unlock("taken"), noon)
	ok(t, err)
	if known, err = b.FinishNew(ctx, unlock("taken"), r, noon); known == nil || known.State != Started || err != nil {
		t.Errorf("a taken id: %+v, %v", known, err)
	}
}

func TestLongResultLosesItsDataOnceReported(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	for id, size := range map[string]int{"short": 100, "long": 2 * keepData} {
		_, err := b.Begin(ctx, unlock(id), noon)
		ok(t, err)
		r := done(id)
		r.Data = []byte(`"` + strings.Repeat("x", size) + `"`)
		ok(t, b.Finish(ctx, r, noon))
		if e, err := b.Command(ctx, id); err != nil || len(e.Result.Data) != size+2 {
			t.Errorf("%s: %d bytes kept before it was reported, %v", id, len(e.Result.Data), err)
		}
		ok(t, b.Reported(ctx, id))
	}
	for id, want := range map[string]int{"short": 102, "long": 0} {
		e, err := b.Command(ctx, id)
		ok(t, err)
		if len(e.Result.Data) != want || e.Result.Status != gatepost.StatusDone {
			t.Errorf("%s: %d bytes kept, want %d; status %s", id, len(e.Result.Data), want, e.Result.Status)
		}
	}
}

func TestOneOfManyBegins(t *testing.T) {
	b := newBook(t)
	const ids, callers = 20, 8
	var wg sync.WaitGroup
	var won [ids]atomic.Int32
	for range callers {
		wg.Go(func() {
			for i := range ids {
				known, err := b.Begin(t.Context(), unlock(fmt.Sprint("c", i)), noon)
				if err != nil {
					t.Error(err)
				} else if known == nil {
					won[i].Add(1)
				}
			}
		})
	}
	wg.Wait()
	for i := range won {
		if n := won[i].Load(); n != 1 {
			t.Errorf("command %d was begun %d times", i, n)
		}
	}
}

// TestBeginIsSynced has Begin wait for the disk and Finish not.
func TestBeginIsSynced(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	var syncs atomic.Int32
	b.fsync = func(f *os.File) error { syncs.Add(1); return datasync(f) }
	_, err := b.Begin(ctx, unlock("c1"), noon)
	ok(t, err)
	if n := syncs.Load(); n != 1 {
		t.Errorf("Begin synced %d times, want once", n)
	}
	_, err = b.Begin(ctx, unlock("c1"), noon)
	ok(t, err)
	ok(t, b.Finish(ctx, done("c1"), noon))
	if n := syncs.Load(); n != 1 {
		t.Errorf("a known command or Finish synced: %d", n)
	}
}

func TestRunSyncsWithin200ms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		synced := make(chan time.Time, 1)
		b.fsync = func(f *os.File) error {
			select {
			case synced <- time.Now():
			default:
			}
			return datasync(f)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := b.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		defer wg.Wait()
		defer cancel()
		_, err := b.FinishNew(ctx, unlock("c1"), done("c1"), noon)
		ok(t, err)
		start := time.Now()
		if took := (<-synced).Sub(start); took > lazySync {
			t.Errorf("synced after %v", took)
		}
	})
}

// TestFailedSyncStopsTheBook: after a failed sync the kernel may have thrown our writes away and call the next one good.
func TestFailedSyncStopsTheBook(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	b.fsync = func(*os.File) error { return syscall.EIO }
	if _, err := b.Begin(ctx, unlock("c1"), noon); !errors.Is(err, syscall.EIO) {
		t.Errorf("Begin: %v", err)
	}
	b.fsync = datasync
	if _, err := b.Begin(ctx, unlock("c2"), noon); !errors.Is(err, syscall.EIO) {
		t.Errorf("Begin after a failed sync: %v", err)
	}
	if err := b.Run(ctx); !errors.Is(err, syscall.EIO) {
		t.Errorf("Run: %v", err)
	}
}

func TestPrune(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	b.now = func() time.Time { return noon }
	old := noon.Add(-keepFor - time.Hour)
	for _, id := range []string{"old", "old-unreported", "old-started", "new"} {
		at := old
		if id == "new" {
			at = noon
		}
		_, err := b.Begin(ctx, unlock(id), at)
		ok(t, err)
		if id != "old-started" {
			ok(t, b.Finish(ctx, done(id), at))
		}
		if id == "old" || id == "new" {
			ok(t, b.Reported(ctx, id))
		}
	}
	more, err := b.prune(ctx)
	ok(t, err)
	if more {
		t.Error("more to prune")
	}
	checkIDs(t, b, "new", "old-started", "old-unreported")
}

func TestPruneByCount(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	b.now = func() time.Time { return noon }
	_, err := b.Begin(ctx, unlock("first"), noon)
	ok(t, err)
	for i := range pruneBite + 1 {
		_, err := b.FinishNew(ctx, unlock(fmt.Sprint(i)), done(fmt.Sprint(i)), noon)
		ok(t, err)
	}
	_, err = b.s.exec(ctx, "INSERT INTO command (n, id, request, received) VALUES (?, 'last', '{}', 0)", pruneBite+2+keepRows)
	ok(t, err)
	for _, want := range []bool{true, false} {
		more, err := b.prune(ctx)
		ok(t, err)
		if more != want {
			t.Errorf("more: %v, want %v", more, want)
		}
	}
	checkIDs(t, b, "first", "last")
}

func checkIDs(t *testing.T, b *Book, want ...string) {
	t.Helper()
	rows, err := b.s.conn.QueryContext(t.Context(), "SELECT id FROM command ORDER BY id")
	ok(t, err)
	defer rows.Close()
	var got []string
	for rows.Next() {
		var id string
		ok(t, rows.Scan(&id))
		got = append(got, id)
	}
	if !slices.Equal(got, want) {
		t.Errorf("left: %v, want %v", got, want)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	b := newBook(t)
	_, err := b.s.conn.ExecContext(t.Context(), "PRAGMA user_version=99")
	ok(t, err)
	ok(t, b.Close())
	_, err = Open(t.Context(), b.path, slog.New(slog.DiscardHandler))
	if err == nil || !strings.HasSuffix(err.Error(), "written by a newer gatepost (schema 99; this one knows 1)") || gatepost.ClassOf(err) != gatepost.Misconfigured {
		t.Errorf("%v", err)
	}
}

// fill makes a book with 300 commands and a device and returns its closed file.
func fill(t *testing.T) string {
	b, ctx := newBook(t), t.Context()
	for i := range 300 {
		_, err := b.FinishNew(ctx, unlock(fmt.Sprint("c", i)), done(fmt.Sprint("c", i)), noon)
		ok(t, err)
	}
	ok(t, b.SetDevice(ctx, Device{ID: "gate", Identity: "A"}))
	ok(t, b.Close())
	return b.path
}

// scribble overwrites bytes of a file.
func scribble(t *testing.T, path string, off, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ok(t, err)
	defer f.Close()
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, n), int64(off))
	ok(t, err)
}

func TestDamagedFileIsSetAside(t *testing.T) {
	path := fill(t)
	ok(t, os.Remove(path+"-wal")) // it holds the whole of a small book
	scribble(t, path, 0, 100)
	before, err := os.ReadFile(path)
	ok(t, err)
	var log bytes.Buffer
	b, err := Open(t.Context(), path, slog.New(slog.NewTextHandler(&log, nil)))
	ok(t, err)
	defer b.Close()
	aside, err := filepath.Glob(path + ".damaged-*Z")
	ok(t, err)
	if len(aside) != 1 {
		t.Fatalf("set aside: %v", aside)
	}
	if after, err := os.ReadFile(aside[0]); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file set aside is not what it was (%v)", err)
	}
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), aside[0]) {
		t.Errorf("log: %s", log.String())
	}
	if known, err := b.Begin(t.Context(), unlock("c1"), noon); known != nil || err != nil {
		t.Errorf("the new book does not work: %+v, %v", known, err)
	}
	if left, err := filepath.Glob(path + ".salvage*"); len(left) != 0 || err != nil {
		t.Errorf("left over: %v", left)
	}
}

// TestDamageFoundInService scribbles over pages of the ledger in an open file: what is left goes into a new one, and the
// call under way succeeds.
func TestDamageFoundInService(t *testing.T) {
	path := fill(t)
	info, err := os.Stat(path)
	ok(t, err)
	for off := 40 << 10; off < 60<<10; off += 1024 {
		scribble(t, path, off, 1024)
	}
	b := open(t, path)
	lost := 0
	for i := range 300 {
		id := fmt.Sprint("c", i)
		known, err := b.FinishNew(t.Context(), unlock(id), done(id), noon)
		ok(t, err)
		if known == nil {
			lost++
		}
	}
	if aside, err := filepath.Glob(path + ".damaged-*Z"); len(aside) != 1 || err != nil {
		t.Errorf("set aside: %v, %v", aside, err)
	}
	if lost == 0 || lost > 200 {
		t.Errorf("of 300 commands in %d bytes, of which 20 KiB are damaged, %d were lost", info.Size(), lost)
	}
	if d, known, err := b.Device(t.Context(), "gate"); !known || d.Identity != "A" || err != nil {
		t.Errorf("the device was not salvaged: %v", err)
	}
}

// TestCheckFindsDamage has the daily look find what no call has come across.
func TestCheckFindsDamage(t *testing.T) {
	path := fill(t)
	ok(t, os.Remove(path+"-wal"))
	scribble(t, path, 40<<10, 1024)
	b := open(t, path)
	ok(t, b.check(t.Context()))
	if aside, err := filepath.Glob(path + ".damaged-*Z"); len(aside) != 1 || err != nil {
		t.Errorf("set aside: %v, %v", aside, err)
	}
	if d, known, err := b.Device(t.Context(), "gate"); !known || d.Identity != "A" || err != nil {
		t.Errorf("the device was not salvaged: %v", err)
	}
	ok(t, b.check(t.Context()))
	if aside, err := filepath.Glob(path + ".damaged-*Z"); len(aside) != 1 || err != nil {
		t.Errorf("set aside although sound: %v, %v", aside, err)
	}
}

// TestFullDisk has a full disk refuse a command, with a hint, and work again once there is space.
func TestFullDisk(t *testing.T) {
	b, ctx := newBook(t), t.Context()
	for _, c := range []struct{ spoil, mend, hint string }{
		{"PRAGMA max_page_count=1", "PRAGMA max_page_count=100000", "the disk is full: free some space, or lower buffer.max_size"},
		{"PRAGMA query_only=1", "PRAGMA query_only=0", "the disk is mounted read-only, often because an SD card is failing: see dmesg"},
	} {
		_, err := b.s.conn.ExecContext(ctx, c.spoil)
		ok(t, err)
		refused := unlock(c.spoil)
		refused.Challenge = strings.Repeat("x", 4096) // more than the free pages hold
		if _, err := b.Begin(ctx, refused, noon); gatepost.HintOf(err) != c.hint {
			t.Errorf("%s: %v, hint %q", c.spoil, err, gatepost.HintOf(err))
		}
		_, err = b.s.conn.ExecContext(ctx, c.mend)
		ok(t, err)
		if known, err := b.Begin(ctx, refused, noon); known != nil || err != nil {
			t.Errorf("%s: %+v, %v", c.mend, known, err)
		}
	}
}

// TestWhyItCannotBeOpened wants a hint for people with each reason.
func TestWhyItCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	ok(t, os.Chmod(dir, 0o555))
	defer os.Chmod(dir, 0o755)
	ok(t, os.Chmod(filepath.Dir(dir), 0o755))
	runtime.LockOSThread() // the file system user belongs to the thread
	defer runtime.UnlockOSThread()
	if os.Geteuid() == 0 {
		ok(t, unix.Setfsuid(65534))
		defer unix.Setfsuid(0)
	}
	for _, c := range []struct{ path, msg, hint string }{
		{filepath.Join(dir, "book.db"), "permission denied", "give the user that gatepost runs as the right to write in its data directory"},
		{filepath.Join(dir, "none", "book.db"), "no such file or directory", "make the data directory first"},
	} {
		_, err := Open(t.Context(), c.path, slog.New(slog.DiscardHandler))
		want := fmt.Sprintf("open %s: %s", c.path, c.msg)
		if err == nil || err.Error() != want || gatepost.HintOf(err) != c.hint || gatepost.ClassOf(err) != gatepost.Misconfigured {
			t.Errorf("got %v (%s), want %s (%s)", err, gatepost.HintOf(err), want, c.hint)
		}
	}
}

const childEnv = "GATEPOST_BOOK_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		child(path)
	}
	os.Exit(m.Run())
}

// child begins commands without end and says each id once Begin returned.
func child(path string) {
	b, err := Open(context.Background(), path, slog.New(slog.DiscardHandler))
	for i := 0; err == nil; i++ {
		id := fmt.Sprint("c", i)
		if _, err = b.Begin(context.Background(), unlock(id), noon); err == nil {
			fmt.Println("begun", id)
			if i%2 == 0 {
				err = b.Finish(context.Background(), done(id), noon)
				fmt.Println("finished", id)
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestKilledProcess kills a process that begins and finishes commands: what it was told stands in the book.
func TestKilledProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "book.db")
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	said := map[string]string{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		word, id, _ := strings.Cut(lines.Text(), " ")
		if said[id] = word; len(said) == 100 {
			ok(t, cmd.Process.Kill()) // what it says until then is read too
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child ended by itself")
	}
	b := open(t, path)
	for id, word := range said {
		e, err := b.Command(t.Context(), id)
		ok(t, err)
		if e == nil || word == "finished" && e.State != Final {
			t.Errorf("%s was %s, but the book says %+v", id, word, e)
		}
	}
	if len(said) < 100 {
		t.Errorf("only %d commands", len(said))
	}
}

// BenchmarkBegin is the price of a command in the ledger; its floor is BenchmarkFdatasync.
func BenchmarkBegin(b *testing.B) {
	bk := newBook(b)
	i := 0
	for b.Loop() {
		i++
		id := fmt.Sprint("c", i)
		if _, err := bk.Begin(b.Context(), unlock(id), noon); err != nil {
			b.Fatal(err)
		}
		if err := bk.Finish(b.Context(), done(id), noon); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFdatasync overwrites 4 KiB in place and syncs them.
func BenchmarkFdatasync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 4<<20)
	if _, err := f.Write(buf); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		i++
		if _, err := f.WriteAt(buf[:4096], int64(i%1024)*4096); err != nil {
			b.Fatal(err)
		}
		if err := datasync(f); err != nil {
			b.Fatal(err)
		}
	}
}
