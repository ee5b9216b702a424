package buffer

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"gatepost"
)

// Store is an open records.db. Its methods are safe for several goroutines.
//
// A write takes two locks in turn, so that one group's rows are inserted while the group before it is synced. Whoever holds
// turn may use the writing connection and is the only one to change st, words and log. Whoever also holds disk may commit;
// turn is given back after the commit, disk after the sync. Reading takes open, so that the file is not exchanged meanwhile.
type Store struct {
	path string
	o    Options

	turn    chan struct{} // capacity 1
	disk    chan struct{} // capacity 1; taken after turn
	arrived chan struct{} // capacity 1: somebody queued
	dirty   chan struct{} // capacity 1: wakes Run, something is to be saved
	args    []any         // of the next insert; under turn
	broken  error         // why the file must be opened anew before the next write; under turn
	unsaved int           // records put since the state was saved; under turn

	open sync.RWMutex // held for writing while f is exchanged
	f    *file        // nil: see broken

	mu                      sync.Mutex // guards what follows; st, words and log are written under turn and mu
	queue                   []*request
	st                      state
	words                   words
	log                     string
	salvaged                bool // see saved
	head                    int64
	grown                   chan struct{} // closed and replaced when head grows
	uplinks                 map[string]*uplink
	known                   bool // SetUplinks was called
	moved                   bool // a place is not on disk yet
	full                    bool
	unsure                  error // why a sync failed: what is committed may not be on disk
	events                  []gatepost.Event
	evicted                 eviction
	parked                  map[string]int64 // by uplink
	written, commits, syncs int64

	sync func(*file) error // replaced by tests
}

// request is one Put that waits for its turn.
type request struct {
	entries []Entry
	added   int
	err     error
	done    chan struct{}
}

// Open opens or makes the file at path. It checks nothing that grows with the file. A damaged file is set aside whole as
// path.damaged-TIME, what can be read of the undelivered records is carried over to a new one, and Event and the log say so.
func Open(ctx context.Context, path string, o Options) (*Store, error) {
	o.MaxBytes = cmp.Or(o.MaxBytes, 512<<20)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := newStore(path, o)
	if err := s.finishSalvage(); err != nil {
		return nil, s.fault(err)
	}
	err := s.reopen(ctx)
	if damaged(err) && ctx.Err() == nil {
		err = s.setAside(ctx, err)
	}
	if err != nil {
		return nil, s.fault(err)
	}
	return s, nil
}

func newStore(path string, o Options) *Store {
	return &Store{
		path: path, o: o,
		turn: make(chan struct{}, 1), disk: make(chan struct{}, 1), arrived: make(chan struct{}, 1), dirty: make(chan struct{}, 1),
		grown: make(chan struct{}), uplinks: make(map[string]*uplink),
		sync: (*file).sync,
	}
}

// reopen opens the file and learns from it where everything is. The caller has the turn, or the store to itself.
func (s *Store) reopen(ctx context.Context) error {
	s.disk <- struct{}{}
	defer func() { <-s.disk }()
	s.open.Lock()
	defer s.open.Unlock()
	if s.f != nil {
		_ = s.f.close() // it is left for being broken
		s.f = nil
	}
	f, err := openFile(ctx, s.path)
	if err != nil {
		return err
	}
	sv, st, d, err := f.load(ctx)
	s.mu.Lock()
	unsure := s.unsure != nil
	s.mu.Unlock()
	if err == nil && unsure {
		// What was committed before the failed sync may be in memory only, and a double of it must not be taken for
		// stored. Copying it all into the file and syncing that makes it true.
		_, err = f.checkpoint(ctx, "TRUNCATE")
	}
	var parked map[string]int64
	if err == nil {
		parked, err = f.parked(ctx)
	}
	if err != nil {
		_ = f.close()
		return err
	}
	made := sv.Log == ""
	if made {
		b := make([]byte, 8)
		rand.Read(b) // never fails
		sv.Log = hex.EncodeToString(b)
	}
	s.f, s.broken = f, nil
	s.mu.Lock()
	s.unsure = nil
	s.st, s.words, s.log, s.salvaged, s.parked = st, d, sv.Log, sv.Salvaged, parked
	for id, p := range sv.Places {
		if s.uplinks[id] == nil && !s.known {
			s.uplinks[id] = &uplink{place: p}
		}
	}
	s.publish(st.Next - 1)
	s.mu.Unlock()
	if made { // the log gets its name before its first record
		t := &tx{s: s, f: f, ctx: ctx, st: st}
		if err := t.save(); err != nil {
			return err
		}
		return s.sync(f)
	}
	return nil
}

// publish shows readers everything up to head. The caller holds mu.
func (s *Store) publish(head int64) {
	if head <= s.head {
		return
	}
	s.head = head
	close(s.grown)
	s.grown = make(chan struct{})
}

// Close ends the store; Run must have returned. What was not saved yet is saved.
func (s *Store) Close() error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.disk <- struct{}{}
	defer func() { <-s.disk }()
	s.open.Lock()
	defer s.open.Unlock()
	if s.f == nil {
		return nil
	}
	err := s.f.close()
	s.f, s.broken = nil, errClosed
	return err
}

var errClosed = errors.New("the record buffer is closed")

// Put stores es, all or none, and returns when they are on disk. Doubles, also within es, are left out and not counted in
// added. The error wraps [ErrFull] when there is no room. Whoever waits when the disk is free writes for all who wait.
func (s *Store) Put(ctx context.Context, es ...Entry) (added int, err error) {
	if len(es) == 0 {
		return 0, nil
	}
	r := &request{entries: es, done: make(chan struct{})}
	s.mu.Lock()
	s.queue = append(s.queue, r)
	s.mu.Unlock()
	select {
	case s.arrived <- struct{}{}:
	default:
	}
	select {
	case <-r.done:
	case s.turn <- struct{}{}:
		s.writeQueue(ctx)
		<-r.done
	case <-ctx.Done():
		if s.withdraw(r) {
			return 0, context.Cause(ctx)
		}
		<-r.done // being written: es is in use until then
	}
	return r.added, r.err
}

// withdraw takes r out of the queue; false where it is being written.
func (s *Store) withdraw(r *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, r)
	if i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	return i >= 0
}

// writeQueue stores whatever waits in the queue and whoever comes while the disk is busy. The caller has the turn; it is
// given back.
func (s *Store) writeQueue(ctx context.Context) {
	var batch []*request
	take := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		batch = append(batch, s.queue...)
		clear(s.queue)
		s.queue = s.queue[:0]
	}
	take() // whatever goes wrong, they are answered
	var of *tx
	put := 0
	do := func(t *tx) error {
		if t != of {
			of, put = t, 0 // all over again, on another file
		}
		take()
		rest := batch[put:]
		put = len(batch)
		return t.put(rest)
	}
	_ = s.write(ctx, true, do, s.arrived, func(err error) {
		for _, r := range batch {
			if err != nil {
				r.added, r.err = 0, err
			} else if r.err != nil {
				r.added, r.err = 0, s.fault(r.err)
			}
			close(r.done)
		}
	})
}

// tx is a transaction under way. Changes to st take effect with its commit.
type tx struct {
	s       *Store
	f       *file
	ctx     context.Context
	st      state
	changed bool // there is something to commit
	saved   bool // st is in the transaction
	rows    int  // in s.args, not inserted yet
	evicted eviction
	full    bool // a request found no room
}

// write runs do in a transaction and, where durable, returns after it is on disk. While the disk is busy, do is run again
// for each sign from more. answer hears the outcome. A damaged file is set aside and do is run on the new one. The caller has the turn; it is given back.
func (s *Store) write(ctx context.Context, durable bool, do func(*tx) error, more <-chan struct{}, answer func(error)) error {
	ctx = context.WithoutCancel(ctx) // a commit that is half done helps nobody
	t, err := s.commit(ctx, do, more)
	if damaged(err) {
		if err = s.setAside(ctx, err); err == nil {
			t, err = s.commit(ctx, do, more)
		}
	}
	<-s.turn
	if err != nil {
		err = s.fault(err)
		if answer != nil {
			answer(err)
		}
		return err
	}
	defer func() { <-s.disk }()
	if durable && t.changed {
		err = s.sync(t.f)
	}
	s.mu.Lock()
	if err != nil {
		s.unsure = err
		err = s.fault(err)
	} else {
		if durable && t.changed {
			s.syncs++
		}
		s.publish(t.st.Next - 1)
	}
	s.mu.Unlock()
	if answer != nil {
		answer(err) // now, so that who puts again at once is in the next group
	}
	return err
}

// commit runs do in a transaction and commits it, for which it waits until the disk is free. The caller has the turn; where
// there is no error it has disk too afterwards.
func (s *Store) commit(ctx context.Context, do func(*tx) error, more <-chan struct{}) (_ *tx, err error) {
	s.mu.Lock()
	unsure := s.unsure
	s.mu.Unlock()
	switch {
	case errors.Is(s.broken, errClosed):
		return nil, errClosed
	case s.broken != nil, unsure != nil:
		if err := s.reopen(ctx); err != nil {
			return nil, err
		}
	case s.f.frames >= 2*checkpointFrames: // Run does it sooner
		if err := s.checkpoint(ctx); err != nil {
			return nil, err
		}
	}
	clear(s.args)
	s.args = s.args[:0]
	t := &tx{s: s, f: s.f, ctx: ctx, st: s.st}
	if _, err := t.f.begin.ExecContext(ctx); err != nil {
		if !harmless(err) {
			s.broken = err
		}
		return nil, err
	}
	dictionary, owned := len(s.words.text), false
	defer func() {
		if err == nil {
			return
		}
		if owned {
			<-s.disk
		}
		s.mu.Lock()
		s.words.cut(dictionary)
		s.moved = s.moved || t.saved
		s.mu.Unlock()
		if _, rerr := t.f.rollback.ExecContext(ctx); rerr != nil || !harmless(err) {
			s.broken = cmp.Or(rerr, err)
		}
	}()
	if err := do(t); err != nil {
		return nil, err
	}
	for !owned {
		select {
		case s.disk <- struct{}{}:
			owned = true
			if more == nil {
				break
			}
			runtime.Gosched() // once: whoever is about to call Put shares this sync
			if err := do(t); err != nil {
				return nil, err
			}
		case <-more:
			if err := do(t); err != nil {
				return nil, err
			}
		}
	}
	s.mu.Lock()
	unsure, moved := s.unsure, s.moved
	s.mu.Unlock()
	if unsure != nil { // the group before this one was not synced, so this one cannot stand on it
		return nil, unsure
	}
	if err := t.flush(); err != nil {
		return nil, err
	}
	if !t.changed {
		if _, err := t.f.rollback.ExecContext(ctx); err != nil {
			s.broken = err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.settle(t)
		return t, nil
	}
	if s.unsaved += int(t.st.Next - s.st.Next); moved || s.unsaved >= maxUnsaved || t.st.Cur != s.st.Cur {
		if err := t.save(); err != nil {
			return nil, err
		}
	}
	for i, w := range s.words.text[dictionary:] {
		if _, err := t.f.w.ExecContext(ctx, "INSERT INTO word VALUES(?,?)", dictionary+i+1, w); err != nil {
			return nil, err
		}
	}
	if _, err := t.f.commit.ExecContext(ctx); err != nil {
		return nil, err
	}
	frames := t.f.cacheWrites()
	if t.f.frames += frames; t.f.frames >= checkpointFrames {
		s.wake()
	}
	if t.saved {
		s.unsaved = 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle(t)
	s.st = t.st
	s.commits++
	s.written += int64(frames) * frameSize
	return t, nil
}

// maxUnsaved bounds how many records Open counts.
const maxUnsaved = 1000

func (s *Store) checkpoint(ctx context.Context) error {
	n, err := s.f.checkpoint(ctx, "PASSIVE")
	s.mu.Lock()
	s.written += n
	s.mu.Unlock()
	return err
}

// wake lets Run look at what is to be done.
func (s *Store) wake() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// save puts the state and the places into the transaction.
func (t *tx) save() error {
	s := t.s
	sv := saved{Next: t.st.Next, Seen: t.st.Seen, Cur: t.st.Cur,
		Segs: make(map[int]segment), Places: make(map[string]Place)}
	for i, g := range t.st.Segs {
		if g.First > 0 {
			sv.Segs[i] = g
		}
	}
	s.mu.Lock()
	sv.Log, sv.Salvaged = s.log, s.salvaged
	for id, u := range s.uplinks {
		sv.Places[id] = u.place
	}
	s.moved = false
	s.mu.Unlock()
	text, err := json.Marshal(sv)
	if err != nil {
		return err
	}
	if _, err = t.f.save.ExecContext(t.ctx, string(text)); err != nil {
		s.mu.Lock()
		s.moved = true
		s.mu.Unlock()
		return err
	}
	t.changed, t.saved = true, true
	return nil
}

// number is the dictionary's number for w, which is made where there is none; nil for the empty word.
func (t *tx) number(w string) any {
	if w == "" {
		return nil
	}
	if n := t.s.words.of(w); n != 0 {
		return n
	}
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	return t.s.words.add(w)
}

// put stores what the requests of batch hold. A request that finds no room fails alone.
func (t *tx) put(batch []*request) error {
	var need int64
	for _, r := range batch {
		r.added, r.err = 0, nil // it may be here for the second time
		for i := range r.entries {
			need += size(&r.entries[i].Stored)
		}
	}
	room, err := t.makeRoom(need)
	if err != nil {
		return err
	}
	for _, r := range batch {
		if room {
			r.added, err = t.insert(r.entries)
		} else {
			err = t.insertIfRoom(r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// insertIfRoom is insert for a file that is nearly full: doubles need no room, so it is known only afterwards.
func (t *tx) insertIfRoom(r *request) error {
	if err := t.flush(); err != nil {
		return err
	}
	if _, err := t.f.w.ExecContext(t.ctx, "SAVEPOINT r"); err != nil {
		return err
	}
	before, changed := t.st, t.changed
	added, err := t.insert(r.entries)
	if err == nil {
		err = t.flush()
	}
	if err != nil {
		return err
	}
	r.added = added
	if added > 0 && t.st.bytes() > t.s.o.MaxBytes {
		if _, err := t.f.w.ExecContext(t.ctx, "ROLLBACK TO r"); err != nil {
			return err
		}
		t.st, t.changed = before, changed
		r.err, t.full = ErrFull, true
	}
	_, err = t.f.w.ExecContext(t.ctx, "RELEASE r")
	return err
}

// insert stores es without its doubles and says how many that were. The last rows wait for flush.
func (t *tx) insert(es []Entry) (added int, err error) {
	for i := range es {
		e := &es[i]
		if e.Source != "" {
			res, err := t.f.refuse.ExecContext(t.ctx, t.number(e.Source), e.Minute, seenHash(e.ID))
			if err != nil {
				return added, err
			}
			if n, err := res.RowsAffected(); err != nil {
				return added, err
			} else if n == 0 {
				continue
			}
			t.st.Seen++
		}
		t.s.args = appendRow(t.s.args, t.st.Next, &e.Stored, e.Source != "", t.number)
		t.st.add(t.st.Next, e.Received.UnixMilli(), class(e.Kind), size(&e.Stored))
		t.st.Next++
		t.rows++
		added++
		t.changed = true
		if t.rows == rowsPerInsert[0] {
			if err := t.flush(); err != nil {
				return added, err
			}
		}
	}
	return added, nil
}

// flush inserts the rows that wait in s.args.
func (t *tx) flush() error {
	args := t.s.args
	for i, n := range rowsPerInsert {
		for ; t.rows >= n; t.rows -= n {
			stmt, err := t.f.inserter(t.ctx, t.st.Cur, i)
			if err != nil {
				return err
			}
			if _, err := stmt.ExecContext(t.ctx, args[:n*columnCount]...); err != nil {
				return err
			}
			args = args[n*columnCount:]
		}
	}
	clear(t.s.args)
	t.s.args = t.s.args[:0]
	t.rotate()
	return nil
}

// rotate begins the next segment when the current one is long enough: 1 MiB where little waits, so that it is soon
// delivered as a whole and emptied, more the more segments are in use, so that they suffice for all of MaxBytes.
func (t *tx) rotate() {
	used, empty := 0, -1
	for i := range t.st.Segs {
		if t.st.Segs[i].First > 0 {
			used++
		} else {
			empty = i
		}
	}
	limit := min(int64(1)<<(20+min(used-1, 30)), max(1<<20, t.s.o.MaxBytes/24))
	if empty >= 0 && t.st.Segs[t.st.Cur].bytes() >= limit {
		t.st.Cur = empty
	}
}

// seenHash is the part of an ID by which doubles are refused, within one source and minute.
func seenHash(id gatepost.ID) int64 { return int64(binary.BigEndian.Uint64(id[:8])) }

// exclusive runs do in a transaction of its own, after waiting for the turn.
func (s *Store) exclusive(ctx context.Context, durable bool, do func(*tx) error) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return s.write(ctx, durable, do, nil, nil)
}

// Prune forgets, day by day (Minute / [gatepost.MinutesPerDay]), the refusal rows of source for which keep is false: days
// that a full read of the source proved gone. keep is asked again while nothing else is written; it must not call the store.
// Losing its work to a power cut does no harm, so it is not synced.
func (s *Store) Prune(ctx context.Context, source string, keep func(day int64) bool) (removed int64, err error) {
	s.mu.Lock()
	src := s.words.of(source)
	s.mu.Unlock()
	if src == 0 {
		return 0, nil
	}
	var days []int64
	err = s.reading(ctx, func(f *file) error {
		next, err := f.readers.PrepareContext(ctx, "SELECT minute FROM seen WHERE src=? AND minute>=? ORDER BY minute LIMIT 1")
		if err != nil {
			return err
		}
		defer next.Close()
		for from := int64(-1 << 62); ; {
			var minute int64
			switch err := next.QueryRowContext(ctx, src, from).Scan(&minute); {
			case errors.Is(err, sql.ErrNoRows):
				return nil
			case err != nil:
				return err
			}
			day := floorDiv(minute, gatepost.MinutesPerDay)
			days = append(days, day)
			from = (day + 1) * gatepost.MinutesPerDay
		}
	})
	if err != nil {
		return 0, err
	}
	for _, day := range days {
		if keep(day) {
			continue
		}
		var n int64
		err := s.exclusive(ctx, false, func(t *tx) error {
			if keep(day) { // asked again in the turn that deletes: no Put comes between
				return nil
			}
			res, err := t.f.w.ExecContext(ctx, "DELETE FROM seen WHERE src=? AND minute BETWEEN ? AND ?",
				src, day*gatepost.MinutesPerDay, (day+1)*gatepost.MinutesPerDay-1)
			if err != nil {
				return err
			}
			if n, err = res.RowsAffected(); err != nil || n == 0 {
				return err
			}
			t.st.Seen -= n
			return t.save()
		})
		if err != nil {
			return removed, err
		}
		removed += n
	}
	return removed, nil
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// Park keeps r aside, for people to look at, because uplink will never take it. The oldest of very many are dropped.
func (s *Store) Park(ctx context.Context, uplink string, r gatepost.Stored, reason string) error {
	rec, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var dropped string // whose
	err = s.exclusive(ctx, true, func(t *tx) error {
		dropped, t.changed = "", true
		_, err := t.f.w.ExecContext(t.ctx, "INSERT INTO parked(at,uplink,reason,rec) VALUES(?,?,?,?)", s.o.Now().UnixMilli(), uplink, reason, rec)
		if err != nil || s.parkedTotal() < maxParked {
			return err
		}
		return t.f.w.QueryRowContext(t.ctx, "DELETE FROM parked WHERE n=(SELECT min(n) FROM parked) RETURNING uplink").Scan(&dropped)
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parked[uplink]++
	if dropped != "" {
		s.parked[dropped]--
	}
	return nil
}

func (s *Store) parkedTotal() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.parked {
		n += c
	}
	return n
}

// maxParked bounds what a far system that takes nothing at all can fill.
const maxParked = 10_000

// finishSalvage completes an exchange of files that a stop interrupted: a finished new file waits under the name that
// setAside gave it, or an unfinished one is to be thrown away.
func (s *Store) finishSalvage() error {
	fresh := s.path + ".new"
	if _, err := os.Stat(fresh); err != nil {
		return nil // the usual case
	}
	switch _, err := os.Stat(s.path); {
	case err == nil:
		return removeDatabase(fresh)
	case errors.Is(err, os.ErrNotExist):
		s.o.Log.Error("record buffer was damaged: a stop interrupted its repair, which is finished now", "hint", "the damaged file is kept beside it")
		return s.adopt(fresh, s.aside())
	default:
		return err
	}
}

// adopt takes a finished new file into use. A write-ahead log of the damaged one must not meet it.
func (s *Store) adopt(fresh, aside string) error {
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Rename(s.path+suffix, aside+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set the damaged file aside: %w", err)
		}
		if err := os.Remove(fresh + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(fresh, s.path); err != nil {
		return fmt.Errorf("take the new file into use: %w", err)
	}
	return syncDir(filepath.Dir(s.path))
}
