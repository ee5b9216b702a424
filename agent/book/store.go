package book

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"gatepost"
)

// schema holds the migrations, numbered from 1 and applied in the order of their names. One that was released is never
// changed.
//
//go:embed schema/*.sql
var schema embed.FS

// pragmas are the measured settings for SD cards: small pages write few bytes; synchronous=NORMAL leaves it to us to sync
// the WAL, once, before anyone is told that a row is on disk. The cache is KiB and lies outside the Go heap.
var pragmas = []string{
	"PRAGMA busy_timeout=5000",
	"PRAGMA page_size=1024",
	"PRAGMA journal_mode=WAL",
	"PRAGMA synchronous=NORMAL",
	"PRAGMA wal_autocheckpoint=1000",
	"PRAGMA cache_size=-256",
	"PRAGMA temp_store=MEMORY",
	"PRAGMA trusted_schema=OFF",
}

// store is one open SQLite file: a pinned connection, its prepared statements, and the WAL to sync.
type store struct {
	db    *sql.DB
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
	wal   *os.File
}

func openStore(ctx context.Context, path string) (_ *store, err error) {
	// SQLite says only "unable to open"; the system says why. This also makes the file private.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			err = e.Err // the caller names the path
		}
		return nil, explain(err)
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	s := &store{stmts: map[string]*sql.Stmt{}}
	defer func() {
		if err != nil {
			_ = s.close()
			err = explain(err)
		}
	}()
	if s.db, err = sql.Open("sqlite", fileURI(path)); err != nil {
		return nil, err
	}
	s.db.SetMaxOpenConns(1)
	if s.conn, err = s.db.Conn(ctx); err != nil {
		return nil, err
	}
	for _, p := range pragmas {
		if _, err := s.conn.ExecContext(ctx, p); err != nil {
			return nil, err
		}
	}
	if err := s.conn.Raw(persistWAL); err != nil {
		return nil, err
	}
	if err := s.migrate(ctx); err != nil {
		return nil, err
	}
	if s.wal, err = openWAL(ctx, s, path); err != nil {
		return nil, err
	}
	if err := datasync(s.wal); err != nil {
		return nil, err
	}
	return s, syncDir(filepath.Dir(path))
}

// persistWAL keeps the WAL file when the last connection closes: overwriting a grown one costs a quarter of the bytes.
func persistWAL(conn any) error {
	c, ok := conn.(sqlite.FileControl)
	if !ok {
		return fmt.Errorf("%T cannot keep its WAL", conn)
	}
	_, err := c.FileControlPersistWAL("main", 1)
	return err
}

// openWAL opens the WAL that the connection writes to. The file exists only after a first write.
func openWAL(ctx context.Context, s *store, path string) (*os.File, error) {
	f, err := os.OpenFile(path+"-wal", os.O_RDWR, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if _, err := s.conn.ExecContext(ctx, "INSERT OR IGNORE INTO fact VALUES ('wal', 1)"); err != nil {
		return nil, err
	}
	return os.OpenFile(path+"-wal", os.O_RDWR, 0)
}

// migrate brings the schema up to date, each step in a transaction of its own.
func (s *store) migrate(ctx context.Context) error {
	files, err := fs.Glob(schema, "schema/*.sql")
	if err != nil {
		return err
	}
	var have int
	if err := s.conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
		return err
	}
	if have > len(files) {
		return &gatepost.Fault{Class: gatepost.Misconfigured, Hint: "install that version again, or move the file away",
			Err: fmt.Errorf("written by a newer gatepost (schema %d; this one knows %d)", have, len(files))}
	}
	for i := have; i < len(files); i++ {
		step, err := fs.ReadFile(schema, files[i])
		if err != nil {
			return err
		}
		_, err = s.conn.ExecContext(ctx, fmt.Sprintf("BEGIN IMMEDIATE; %s\n; PRAGMA user_version=%d; COMMIT", step, i+1))
		if err != nil {
			_, _ = s.conn.ExecContext(ctx, "ROLLBACK")
			return fmt.Errorf("%s: %w", files[i], err)
		}
	}
	// Touch the schema: of a damaged file this is what most often cannot be read.
	_, err = s.conn.ExecContext(ctx, "SELECT count(*) FROM sqlite_schema")
	return err
}

// stmt is query, prepared on its first use.
func (s *store) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	if st, ok := s.stmts[query]; ok {
		return st, nil
	}
	st, err := s.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s.stmts[query] = st
	return st, nil
}

// exec runs query and says how many rows it changed.
func (s *store) exec(ctx context.Context, query string, args ...any) (int64, error) {
	st, err := s.stmt(ctx, query)
	if err != nil {
		return 0, err
	}
	res, err := st.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// get reads one row into dest; found is false where there is none.
func (s *store) get(ctx context.Context, dest []any, query string, args ...any) (found bool, err error) {
	st, err := s.stmt(ctx, query)
	if err != nil {
		return false, err
	}
	err = st.QueryRowContext(ctx, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// close closes what is open; statements before their connection, the other order panics in modernc.org/sqlite.
func (s *store) close() error {
	var errs []error
	for _, st := range s.stmts {
		errs = append(errs, st.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	if s.wal != nil {
		errs = append(errs, s.wal.Close())
	}
	return errors.Join(errs...)
}

func fileURI(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return (&url.URL{Scheme: "file", Path: path}).String()
}

// datasync returns when the data of f is on the disk itself.
func datasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// syncDir makes the names of new files survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// errTorn is an index that names a row which is not there.
var errTorn = errors.New("database disk image is malformed: an index and its table differ")

// damaged says whether err means that the file is not, or no longer, a sound database.
func damaged(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return errors.Is(err, errTorn) || ok && (e.Code()&0xff == sqlite3.SQLITE_CORRUPT || e.Code()&0xff == sqlite3.SQLITE_NOTADB)
}

// explain adds what a person can do about err, where that is known.
func explain(err error) error {
	if gatepost.HintOf(err) != "" {
		return err
	}
	code := 0
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		code = e.Code() & 0xff
	}
	switch {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || code == sqlite3.SQLITE_FULL:
		return &gatepost.Fault{Class: gatepost.Temporary, Hint: "the disk is full: free some space, or lower buffer.max_size", Err: err}
	case errors.Is(err, syscall.EROFS) || code == sqlite3.SQLITE_READONLY:
		return &gatepost.Fault{Class: gatepost.Misconfigured, Hint: "the disk is mounted read-only, often because an SD card is failing: see dmesg", Err: err}
	case errors.Is(err, fs.ErrPermission):
		return &gatepost.Fault{Class: gatepost.Misconfigured, Hint: "give the user that gatepost runs as the right to write in its data directory", Err: err}
	case errors.Is(err, fs.ErrNotExist):
		return &gatepost.Fault{Class: gatepost.Misconfigured, Hint: "make the data directory first", Err: err}
	}
	return err
}
