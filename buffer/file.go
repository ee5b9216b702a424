package buffer

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"

	"gatepost"
)

// rowsPerInsert is how many records one statement inserts, the most that fit first.
var rowsPerInsert = [...]int{16, 4, 1}

// checkpointFrames is the length of the write-ahead log, in pages, from which it is copied into the file (4 MiB).
const checkpointFrames = 4000

// pageSize is small because a single punch rewrites two or three pages.
const pageSize = 1024

// frameSize is a page with its header in the write-ahead log.
const frameSize = pageSize + 24

// file is an open records.db: one connection that writes, a few that read.
type file struct {
	path    string
	writers *sql.DB
	w       *sql.Conn
	readers *sql.DB
	wal     *os.File // for our own fdatasync

	begin, commit, rollback, save *sql.Stmt
	refuse                        *sql.Stmt
	insert                        [segments][len(rowsPerInsert)]*sql.Stmt
	frames                        int // written since the write-ahead log began anew

	mu   sync.Mutex // guards read and open
	read [segments]*sql.Stmt
	open []*sql.Stmt // all statements, to be closed before their connections
}

func dsn(path string, pragmas ...string) url.URL {
	q := url.Values{"_pragma": append(pragmas, "busy_timeout(5000)", "cache_size(-1000)")}
	return url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}
}

// openFile opens path, making and filling it where there is none.
func openFile(ctx context.Context, path string) (_ *file, err error) {
	_, statErr := os.Stat(path)
	made := errors.Is(statErr, os.ErrNotExist)
	f := &file{path: path}
	defer func() {
		if err != nil {
			_ = f.close()
		}
	}()
	// WAL with synchronous=NORMAL syncs nothing at a commit: sync does, before anyone is told. The driver runs _pragma by
	// alphabet and _journal_mode after them; page_size has no effect once the journal mode is set.
	w := dsn(path, fmt.Sprintf("page_size(%d)", pageSize), "synchronous(NORMAL)", "wal_autocheckpoint(0)")
	w.RawQuery += "&_journal_mode=WAL"
	f.writers, err = sql.Open("sqlite", w.String())
	if err != nil {
		return nil, err
	}
	f.writers.SetMaxOpenConns(1)
	if f.w, err = f.writers.Conn(ctx); err != nil {
		return nil, err
	}
	err = f.w.Raw(func(c any) error {
		_, err := c.(sqlite.FileControl).FileControlPersistWAL("main", 1)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := f.checkSchema(ctx); err != nil {
		return nil, err
	}
	for _, p := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&f.begin, "BEGIN IMMEDIATE"}, {&f.commit, "COMMIT"}, {&f.rollback, "ROLLBACK"},
		{&f.save, "INSERT OR REPLACE INTO state VALUES(1,?)"},
		{&f.refuse, "INSERT OR IGNORE INTO seen VALUES(?,?,?)"},
	} {
		if *p.stmt, err = f.prepare(ctx, f.w, p.text); err != nil {
			return nil, err
		}
	}
	r := dsn(path, "query_only(1)")
	if f.readers, err = sql.Open("sqlite", r.String()); err != nil {
		return nil, err
	}
	f.readers.SetMaxOpenConns(2)
	f.readers.SetMaxIdleConns(2)
	// The write-ahead log exists from the first read or write on. It is never deleted or replaced while we have the file.
	if f.wal, err = os.OpenFile(path+"-wal", os.O_RDWR, 0); err != nil {
		return nil, err
	}
	f.grow()
	if !made {
		f.frames = checkpointFrames // how many there are is not known: Run copies them soon
	}
	// Whoever had the file before may have been killed between a commit and its sync.
	if err := f.sync(); err != nil {
		return nil, err
	}
	if made {
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// errForeign is a database that is not ours, or of a newer gatepost.
var errForeign = errors.New("not a record buffer of this version of gatepost")

func (f *file) checkSchema(ctx context.Context) error {
	var app, version int
	if err := f.w.QueryRowContext(ctx, "PRAGMA application_id").Scan(&app); err != nil {
		return err
	}
	if err := f.w.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if app == applicationID && version == schemaVersion {
		return nil
	}
	var tables int
	if err := f.w.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
		return err
	}
	if tables > 0 {
		return errForeign
	}
	stmts := append([]string{"BEGIN IMMEDIATE"}, schema()...)
	for _, s := range append(stmts, "COMMIT") {
		if _, err := f.w.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

type preparer interface {
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

func (f *file) prepare(ctx context.Context, p preparer, text string) (*sql.Stmt, error) {
	s, err := p.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = append(f.open, s)
	return s, nil
}

// inserter is the statement that inserts rowsPerInsert[i] records into segment seg.
func (f *file) inserter(ctx context.Context, seg, i int) (_ *sql.Stmt, err error) {
	p := &f.insert[seg][i]
	if *p == nil {
		row := "(" + strings.Repeat("?,", columnCount-1) + "?)"
		*p, err = f.prepare(ctx, f.w, fmt.Sprintf("INSERT INTO seg%d VALUES%s", seg, strings.Repeat(row+",", rowsPerInsert[i]-1)+row))
	}
	return *p, err
}

// grow gives the write-ahead log its full length at once: a sync of a file that grows flushes the disk twice. SQLite takes
// zeros for the end of the log and writes over them. Where there is no room it grows as it may.
func (f *file) grow() {
	const full = 32 + checkpointFrames*frameSize
	fi, err := f.wal.Stat()
	if err != nil || fi.Size() >= full {
		return
	}
	if _, err := f.wal.WriteAt(make([]byte, full-fi.Size()), fi.Size()); err != nil {
		_ = f.wal.Truncate(fi.Size()) // if this fails too the log is merely long
	}
}

// sync puts on disk whatever was committed.
func (f *file) sync() error {
	if err := unix.Fdatasync(int(f.wal.Fd())); err != nil {
		return fmt.Errorf("sync %s-wal: %w", f.path, err)
	}
	return nil
}

// load reads the saved state and the dictionary. What was put after the state was last saved is counted now; it is little.
func (f *file) load(ctx context.Context) (sv saved, st state, d words, err error) {
	d = words{number: map[string]int64{}}
	rows, err := f.w.QueryContext(ctx, "SELECT n,w FROM word ORDER BY n")
	if err != nil {
		return sv, st, d, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		var w string
		if err := scan(rows, &n, &w); err != nil {
			return sv, st, d, err
		}
		if d.add(w) != n {
			return sv, st, d, fmt.Errorf("%w: word %d is missing", errDamaged, n-1)
		}
	}
	if err := rows.Err(); err != nil {
		return sv, st, d, err
	}
	var text string
	switch err := f.w.QueryRowContext(ctx, "SELECT v FROM state WHERE n=1").Scan(&text); {
	case errors.Is(err, sql.ErrNoRows):
		return sv, state{Next: 1}, d, nil
	case err != nil:
		return sv, st, d, err
	}
	if err := json.Unmarshal([]byte(text), &sv); err != nil {
		return sv, st, d, fmt.Errorf("%w: state: %w", errDamaged, err)
	}
	if st, err = sv.state(); err != nil {
		return sv, st, d, err
	}
	tail, err := f.w.QueryContext(ctx, fmt.Sprintf("SELECT id,kind,recv,seen,length(data) FROM seg%d WHERE id>=? ORDER BY id", st.Cur), st.Next)
	if err != nil {
		return sv, st, d, err
	}
	defer tail.Close()
	for tail.Next() {
		var id, kind, recv, seen, n int64
		if err := scan(tail, &id, &kind, &recv, &seen, &n); err != nil {
			return sv, st, d, err
		}
		st.add(id, recv, class(gatepost.Kind(word(d.text, kind))), rowOverhead+n)
		st.Next = id + 1
		st.Seen += seen
	}
	return sv, st, d, tail.Err()
}

// state is the working form of what was saved.
func (sv *saved) state() (state, error) {
	st := state{Next: sv.Next, Seen: sv.Seen, Cur: sv.Cur}
	if sv.Log == "" || sv.Next < 1 || sv.Cur < 0 || sv.Cur >= segments {
		return st, fmt.Errorf("%w: state makes no sense", errDamaged)
	}
	for i, g := range sv.Segs {
		if i < 0 || i >= segments || g.First < 1 || g.Last < g.First || g.Last >= sv.Next {
			return st, fmt.Errorf("%w: state makes no sense of segment %d", errDamaged, i)
		}
		st.Segs[i] = g
	}
	return st, nil
}

// cacheWrites is how many pages w has written to the write-ahead log since it was last asked.
func (f *file) cacheWrites() (n int) {
	_ = f.w.Raw(func(c any) (err error) { // an unknown counter counts nothing
		n, _, err = c.(sqlite.DBStatus).Status(sqlite.DBStatusCacheWrite, true)
		return err
	})
	return n
}

// checkpoint copies the write-ahead log into the file, so that it begins anew; it says how many bytes that wrote.
func (f *file) checkpoint(ctx context.Context, mode string) (written int64, err error) {
	var busy, frames, done int
	if err := f.w.QueryRowContext(ctx, "PRAGMA wal_checkpoint("+mode+")").Scan(&busy, &frames, &done); err != nil {
		return 0, err
	}
	f.frames = max(0, frames-done)
	if done < frames { // a reader holds it; the next one goes on
		return 0, nil
	}
	return int64(f.walPages(frames)) * pageSize, nil
}

// walPages counts the different pages among the first frames of the write-ahead log: those that a checkpoint writes.
func (f *file) walPages(frames int) int {
	const header = 32
	pages := make(map[[4]byte]struct{})
	var number [4]byte
	for i := range frames {
		if _, err := f.wal.ReadAt(number[:], header+int64(i)*frameSize); err != nil {
			break // shorter than we think: the count is for people
		}
		pages[number] = struct{}{}
	}
	return len(pages)
}

// parked counts the parked records of each uplink.
func (f *file) parked(ctx context.Context) (map[string]int64, error) {
	counts := make(map[string]int64)
	rows, err := f.w.QueryContext(ctx, "SELECT uplink,count(*) FROM parked GROUP BY uplink")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var uplink string
		var n int64
		if err := scan(rows, &uplink, &n); err != nil {
			return nil, err
		}
		counts[uplink] = n
	}
	return counts, rows.Err()
}

// close ends all use of the file. Statements go before their connection: the other order panics in the driver.
func (f *file) close() error {
	var errs []error
	for _, s := range f.open {
		errs = append(errs, s.Close())
	}
	if f.readers != nil {
		errs = append(errs, f.readers.Close())
	}
	if f.w != nil {
		errs = append(errs, f.w.Close())
	}
	if f.writers != nil {
		errs = append(errs, f.writers.Close())
	}
	if f.wal != nil {
		errs = append(errs, f.wal.Close())
	}
	return errors.Join(errs...)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
