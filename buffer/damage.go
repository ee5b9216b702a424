package buffer

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"gatepost"
)

var (
	errDamaged = errors.New("the file is damaged")
	errNotOpen = errors.New("the record buffer is not open")
)

// code is the primary result code of an SQLite error, 0 for other errors.
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() & 0xff
	}
	return 0
}

// damaged says whether err means that the file itself is not to be trusted any more. SQLITE_ERROR is among the codes: our
// statements never change, so what they do not find (a table, a file format) was there once.
func damaged(err error) bool {
	switch code(err) {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR:
		return true
	}
	return errors.Is(err, errDamaged)
}

// harmless says whether a rollback undoes all that went wrong with err; else the file is opened anew.
func harmless(err error) bool {
	switch code(err) {
	case 0, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL:
		return true
	}
	return false
}

// fault says what err means for people. All faults of the store are Temporary: terminals keep their records and try again.
func (s *Store) fault(err error) error {
	if _, done := errors.AsType[*gatepost.Fault](err); done {
		return err
	}
	dir := filepath.Dir(s.path)
	c := code(err)
	if c == sqlite3.SQLITE_IOERR || c == sqlite3.SQLITE_CANTOPEN || c == sqlite3.SQLITE_READONLY {
		if perr := probe(dir); perr != nil { // SQLite does not tell the system's own reason
			err = fmt.Errorf("%w (%w)", err, perr)
		}
	}
	f := &gatepost.Fault{Class: gatepost.Temporary}
	switch {
	case errors.Is(err, ErrFull):
		f.Hint, f.Err = fullHint, fmt.Errorf("%s: %w", s.path, err)
	case c == sqlite3.SQLITE_FULL, errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		f.Hint = "free some space on the disk that holds " + dir + "; until then new punches stay in the terminals"
		f.Err = fmt.Errorf("the disk is full: %s: %w", s.path, err)
	case errors.Is(err, syscall.EROFS), c == sqlite3.SQLITE_READONLY:
		f.Hint = "an SD card that wears out turns read-only: look at dmesg, replace the card; until then new punches stay in the terminals"
		f.Err = fmt.Errorf("the disk is read-only: %s: %w", s.path, err)
	case errors.Is(err, os.ErrPermission):
		f.Hint = "give the user that gatepost runs as the directory " + dir
		f.Err = fmt.Errorf("not allowed to write %s: %w", s.path, err)
	case errors.Is(err, os.ErrNotExist), c == sqlite3.SQLITE_CANTOPEN:
		f.Hint = "the directory " + dir + " must exist"
		f.Err = fmt.Errorf("open %s: %w", s.path, err)
	case c == sqlite3.SQLITE_BUSY:
		f.Hint = "close the program that has the file open"
		f.Err = fmt.Errorf("another program has locked %s: %w", s.path, err)
	case errors.Is(err, errForeign):
		f.Class = gatepost.Misconfigured
		f.Hint = "move the file away, or run the version of gatepost that made it"
		f.Err = fmt.Errorf("%s: %w", s.path, err)
	default:
		f.Err = fmt.Errorf("%s: %w", s.path, err)
	}
	return f
}

// probe writes a byte beside the file to learn why SQLite could not.
func probe(dir string) error {
	f, err := os.CreateTemp(dir, ".probe-")
	if err != nil {
		return err
	}
	_, err = f.Write([]byte{0})
	err = errors.Join(err, f.Close())
	return errors.Join(err, os.Remove(f.Name()))
}

// replace sets f aside, unless that was done already.
func (s *Store) replace(ctx context.Context, f *file, cause error) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.turn }()
	if s.f != f {
		return nil
	}
	return s.setAside(ctx, cause)
}

// setAside replaces the damaged file by a new one that holds what could be read of it. The new one is finished under another
// name first, so that a stop at any moment leaves either the damaged file, which is then found again, or all that was
// salvaged. The damaged file is kept, for ever. The caller has the turn.
func (s *Store) setAside(ctx context.Context, cause error) error {
	start := time.Now()
	s.disk <- struct{}{} // until the last sync of it has ended
	s.open.Lock()
	if s.f != nil {
		_ = s.f.close() // it is damaged
		s.f = nil
	}
	s.open.Unlock()
	<-s.disk
	s.broken = cause
	fresh := s.path + ".new"
	if err := removeDatabase(fresh); err != nil {
		return err
	}
	n := newStore(fresh, s.o)
	n.sync = s.sync
	n.o.MaxBytes = math.MaxInt64
	if err := n.reopen(ctx); err != nil {
		return fmt.Errorf("start a new file: %w", undamage(err))
	}
	count, err := s.salvage(ctx, n)
	if err == nil {
		err = n.exclusive(ctx, true, (*tx).save)
	}
	if err == nil {
		_, err = n.f.checkpoint(ctx, "TRUNCATE")
	}
	if cerr := n.f.close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = removeDatabase(fresh)
		return fmt.Errorf("start a new file: %w", undamage(err))
	}
	aside := s.aside()
	if err := os.Rename(s.path, aside); err != nil {
		return fmt.Errorf("set the damaged file aside: %w", err)
	}
	if err := s.adopt(fresh, aside); err != nil {
		return err
	}
	if err := s.reopen(ctx); err != nil {
		return undamage(err)
	}
	s.o.Log.Error("record buffer was damaged: set aside, a new one started", "err", cause, "count", count, "took", time.Since(start),
		"hint", "the damaged file is kept as "+aside+"; an SD card that damages files should be replaced")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.uplinks {
		u.place, u.oldest = at(s.st.oldest()-1), 0
	}
	s.moved = true
	s.event(gatepost.Event{
		Name:    "buffer_damaged",
		Message: fmt.Sprintf("the record buffer was damaged; it is kept as %s, and %d undelivered records were saved from it", aside, count),
		Detail:  Damage{File: aside, Salvaged: count},
	})
	return nil
}

// Damage is the Detail of the event "buffer_damaged".
type Damage struct {
	File     string `json:"file"` // where the damaged file is kept
	Salvaged int64  `json:"salvaged"`
}

// undamage keeps a fault met while replacing the file from being taken for damage that asks for replacing it once more.
func undamage(err error) error {
	if damaged(err) {
		return errors.New(err.Error())
	}
	return err
}

// aside is a free name for the damaged file.
func (s *Store) aside() string {
	name := s.path + ".damaged-" + s.o.Now().UTC().Format("20060102T150405Z")
	for free, n := name, 2; ; n++ {
		if _, err := os.Lstat(free); err != nil {
			return free
		}
		free = fmt.Sprintf("%s-%d", name, n)
	}
}

func removeDatabase(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// salvage copies what can be read of the undelivered records and of the refusal of doubles into n. An error is n's; what
// cannot be read is left out.
func (s *Store) salvage(ctx context.Context, n *Store) (count int64, err error) {
	old, err := s.openDamaged(ctx)
	if err != nil {
		s.o.Log.Warn("nothing can be read of the damaged record buffer", "err", err)
		old = nil
	} else {
		defer old.close()
	}
	s.mu.Lock()
	text, base, places := s.words.text, s.st.Next-1, make(map[string]Place)
	for id, u := range s.uplinks {
		places[id] = u.place
	}
	s.mu.Unlock()
	var sv saved
	if old != nil {
		if t := old.words(ctx); len(t) > len(text) {
			text = t
		}
		sv = old.saved(ctx)
	}
	if len(places) == 0 {
		places = sv.Places
	}
	base = max(0, base, sv.Next-1)
	delivered := int64(0)
	if len(places) > 0 {
		delivered = math.MaxInt64
		for _, p := range places {
			delivered = min(delivered, p.Done)
		}
	}
	n.st.Next = base + 1
	n.salvaged = true
	for id := range places {
		n.uplinks[id] = &uplink{place: at(base)}
	}
	if old == nil {
		return 0, nil
	}
	for _, seg := range old.order(sv) {
		err := old.records(ctx, seg, delivered, text, func(rs []Entry) error {
			r := &request{entries: rs}
			err := n.exclusive(ctx, false, func(t *tx) error { return t.put([]*request{r}) })
			count += int64(r.added)
			return err
		})
		if err != nil {
			return count, err
		}
	}
	for i, source := range text {
		err := old.seen(ctx, int64(i+1), func(minutes, hashes []int64) error {
			return n.exclusive(ctx, false, func(t *tx) error {
				src := t.number(source)
				for j, minute := range minutes {
					if _, err := t.f.refuse.ExecContext(t.ctx, src, minute, hashes[j]); err != nil {
						return err
					}
				}
				t.st.Seen += int64(len(minutes))
				t.changed = true
				return nil
			})
		})
		if err != nil {
			return count, err
		}
	}
	return count, nil
}

// ruin is a damaged file, opened to read what is left.
type ruin struct {
	db   *sql.DB
	copy string // to be removed
}

func (r *ruin) close() {
	_ = r.db.Close()
	if r.copy != "" {
		_ = removeDatabase(r.copy)
	}
}

// openDamaged opens the damaged file without writing to it. Where its first page is gone, a copy of it is read with
// the first page of a new file: that page is the same in each of our files, but for the number of pages.
func (s *Store) openDamaged(ctx context.Context) (*ruin, error) {
	try := func(path string) (*sql.DB, error) {
		u := dsn(path, "query_only(1)", "cell_size_check(1)")
		u.RawQuery += "&mode=ro"
		db, err := sql.Open("sqlite", u.String())
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(1)
		var n int
		if err = db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&n); err == nil && n == 0 {
			err = errDamaged
		}
		if err != nil {
			_ = db.Close()
			return nil, err
		}
		return db, nil
	}
	db, err := try(s.path)
	if err == nil {
		return &ruin{db: db}, nil
	}
	if !damaged(err) {
		return nil, err
	}
	patched := s.path + ".patched"
	if perr := s.patch(ctx, patched); perr != nil {
		_ = removeDatabase(patched)
		return nil, errors.Join(err, perr)
	}
	if db, err = try(patched); err != nil {
		_ = removeDatabase(patched)
		return nil, err
	}
	return &ruin{db: db, copy: patched}, nil
}

// patch makes a copy of the damaged file with a sound first page.
func (s *Store) patch(ctx context.Context, to string) error {
	if err := removeDatabase(to); err != nil {
		return err
	}
	f, err := openFile(ctx, to)
	if err != nil {
		return err
	}
	_, err = f.checkpoint(ctx, "TRUNCATE")
	if err = errors.Join(err, f.close()); err != nil {
		return err
	}
	first := make([]byte, pageSize)
	if err := readFirst(to, first); err != nil {
		return err
	}
	if err := removeDatabase(to); err != nil {
		return err
	}
	for _, suffix := range []string{"", "-wal"} {
		if err := copyFile(s.path+suffix, to+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	fi, err := os.Stat(to)
	if err != nil {
		return err
	}
	// https://sqlite.org/fileformat2.html#the_database_header: pages at 28, first free page at 32, free pages at 36.
	binary.BigEndian.PutUint32(first[28:], uint32(fi.Size()/pageSize))
	binary.BigEndian.PutUint64(first[32:], 0)
	w, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = w.WriteAt(first, 0)
	return errors.Join(err, w.Close())
}

func readFirst(path string, b []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.ReadFull(f, b)
	return err
}

func copyFile(from, to string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// words is the dictionary as far as it can be read.
func (r *ruin) words(ctx context.Context) (text []string) {
	rows, err := r.db.QueryContext(ctx, "SELECT n,w FROM word ORDER BY n")
	if err != nil {
		return nil
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		var w string
		if rows.Scan(&n, &w) != nil || n != int64(len(text)+1) {
			break
		}
		text = append(text, w)
	}
	return text
}

// saved is the state, zero where it cannot be read.
func (r *ruin) saved(ctx context.Context) (sv saved) {
	var text string
	if r.db.QueryRowContext(ctx, "SELECT v FROM state WHERE n=1").Scan(&text) != nil || json.Unmarshal([]byte(text), &sv) != nil {
		return saved{}
	}
	if _, err := sv.state(); err != nil {
		return saved{}
	}
	return sv
}

// order lists all segments, in the order of their records where that is known.
func (r *ruin) order(sv saved) []int {
	st, _ := sv.state() // checked before, or zero
	order := st.inOrder()
	for i := range segments {
		if st.Segs[i].First == 0 {
			order = append(order, i)
		}
	}
	return order
}

// Reading past damage goes on a few rows further on, doubling, and ends after so many failures.
const (
	stepRows    = 8
	maxStep     = 4096
	maxFailures = 2000
)

// records hands over the readable records of a segment beyond after, in pieces.
func (r *ruin) records(ctx context.Context, seg int, after int64, text []string, put func([]Entry) error) error {
	query := fmt.Sprintf("SELECT id,%s FROM seg%d WHERE id>? ORDER BY id LIMIT 500", columns, seg)
	step, failures := int64(stepRows), 0
	for failures < maxFailures && after < math.MaxInt64-maxStep {
		es, last, err := readPiece(ctx, r.db, query, after, text)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if len(es) > 0 {
			if err := put(es); err != nil {
				return err
			}
		}
		switch {
		case err != nil:
			failures++
			after = last + step
			step = min(2*step, maxStep)
		case last == after:
			return nil
		default:
			after, step = last, stepRows
		}
	}
	return nil
}

// readPiece reads records until the first error, leaving out those that make no sense. last is where it came to.
func readPiece(ctx context.Context, db *sql.DB, query string, after int64, text []string) (es []Entry, last int64, err error) {
	rows, err := db.QueryContext(ctx, query, after)
	if err != nil {
		return nil, after, err
	}
	defer rows.Close()
	last = after
	for rows.Next() {
		var e Entry
		err := scanRow(rows, &e.Stored, text)
		if e.Seq <= last { // a damaged page can point back
			return es, last, errDamaged
		}
		last = e.Seq
		if err == nil && e.Kind != "" && json.Valid(e.Data) {
			es = append(es, e)
		}
	}
	return es, last, rows.Err()
}

// seen hands over the readable refusal rows of a source, in pieces.
func (r *ruin) seen(ctx context.Context, src int64, put func(minutes, hashes []int64) error) error {
	minute, hash := int64(math.MinInt64), int64(math.MinInt64)
	step := int64(1)
	for failures := 0; failures < maxFailures; {
		var minutes, hashes []int64
		err := func() error {
			rows, err := r.db.QueryContext(ctx, "SELECT minute,hash FROM seen WHERE src=? AND (minute,hash)>(?,?) ORDER BY minute,hash LIMIT 2000", src, minute, hash)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var m, h int64
				if err := rows.Scan(&m, &h); err != nil {
					return err
				}
				if m < minute || m == minute && h <= hash {
					return errDamaged
				}
				minute, hash = m, h
				minutes, hashes = append(minutes, m), append(hashes, h)
			}
			return rows.Err()
		}()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if len(minutes) > 0 {
			if err := put(minutes, hashes); err != nil {
				return err
			}
		}
		switch {
		case err != nil && minute == math.MinInt64:
			return nil // not even the first
		case err != nil:
			failures++
			minute, hash = minute+step, math.MinInt64
			step = min(2*step, gatepost.MinutesPerDay)
		case len(minutes) == 0:
			return nil
		default:
			step = 1
		}
	}
	return nil
}
