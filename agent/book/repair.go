package book

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"gatepost"
)

// tables is what is salvaged from a damaged file, the ledger first.
var tables = []string{"command", "device", "cursor", "kv", "fact"}

// checkDaily looks for damage that nobody has come across yet.
func (b *Book) checkDaily(ctx context.Context) {
	timer := time.NewTimer(checkAfter)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			if err := b.check(ctx); err != nil && ctx.Err() == nil {
				b.log.Warn("book not checked", "err", err, "hint", gatepost.HintOf(err))
			}
			timer.Reset(checkEvery)
		}
	}
}

// check has SQLite look at every page, over a connection of its own, so that nobody waits for it; a damaged file is
// replaced.
func (b *Book) check(ctx context.Context) error {
	b.mu.Lock()
	s := b.s
	b.mu.Unlock()
	db, err := sql.Open("sqlite", fileURI(b.path)+"?mode=ro")
	if err != nil {
		return err
	}
	defer db.Close()
	var found string
	err = db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&found)
	switch {
	case err == nil && found != "ok":
		err = errors.New(found)
	case !damaged(err):
		return err
	}
	return b.repair(context.WithoutCancel(ctx), s, err)
}

// replace sets the damaged file aside, whole and for good, starts a new one and copies into it what the old one still
// tells. The old one is not open.
func (b *Book) replace(ctx context.Context, cause error) (*store, error) {
	aside := fmt.Sprintf("%s.damaged-%s", b.path, b.now().UTC().Format("20060102T150405.000Z"))
	for _, suffix := range []string{"-wal", ""} { // the database last: until it is gone the whole is still found damaged
		if err := os.Rename(b.path+suffix, aside+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if err := os.Remove(b.path + "-shm"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s, err := openStore(ctx, b.path)
	if err != nil {
		return nil, err
	}
	count, err := b.salvage(ctx, s, aside)
	if err != nil {
		_ = s.close()
		return nil, err
	}
	if err := b.fsync(s.wal); err != nil {
		_ = s.close()
		return nil, err
	}
	b.log.Error("book was damaged: set aside, salvaged, started anew", "err", fmt.Errorf("%s: %w", aside, cause), "count", count,
		"hint", "a failing SD card does this: replace it soon, and keep the file for support")
	return s, nil
}

// salvage copies the rows that can be read from aside into s. It reads a copy, since SQLite would write to the original.
// What cannot be read is no error.
func (b *Book) salvage(ctx context.Context, s *store, aside string) (count int64, err error) {
	scratch := b.path + ".salvage"
	defer func() {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			_ = os.Remove(scratch + suffix) // gone already, or removed by the next salvage
		}
	}()
	for _, suffix := range []string{"", "-wal"} {
		if err := copyFile(scratch+suffix, aside+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
	}
	old, err := sql.Open("sqlite", fileURI(scratch))
	if err != nil {
		return 0, err
	}
	defer old.Close()
	if _, err := s.conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return 0, err
	}
	for _, table := range tables {
		// From both ends: a damaged page stops each way.
		for _, order := range []string{"", " DESC"} {
			n, err := copyRows(ctx, s, old, table, order)
			count += n
			if err != nil {
				_, _ = s.conn.ExecContext(ctx, "ROLLBACK")
				return 0, err
			}
		}
	}
	_, err = s.conn.ExecContext(ctx, "COMMIT")
	return count, err
}

// copyRows copies rows of table until one cannot be read. Rows that the new file does not take are left out.
func copyRows(ctx context.Context, s *store, old *sql.DB, table, order string) (count int64, err error) {
	rows, err := old.QueryContext(ctx, "SELECT * FROM "+table+" ORDER BY 1"+order)
	if err != nil {
		return 0, nil
	}
	defer rows.Close()
	cols, err := rows.Columns()
	if err != nil || len(cols) == 0 {
		return 0, nil
	}
	insert := fmt.Sprintf("INSERT OR IGNORE INTO %s (%s) VALUES (?%s)", table, strings.Join(cols, ", "), strings.Repeat(", ?", len(cols)-1))
	vals, dest := make([]any, len(cols)), make([]any, len(cols))
	for i := range vals {
		dest[i] = &vals[i]
	}
	for rows.Next() {
		if rows.Scan(dest...) != nil {
			return count, nil
		}
		n, err := s.exec(ctx, insert, vals...)
		if err != nil && !misfit(err) {
			return count, err
		}
		count += n
	}
	return count, nil
}

// misfit says whether err is about the row, not about the file that it should go into.
func misfit(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return false
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG:
		return true
	}
	return false
}

func copyFile(to, from string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := dst.Close(); err == nil {
			err = cerr
		}
	}()
	_, err = io.Copy(dst, src)
	return err
}
