package buffer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"gatepost"
)

const (
	saveDelay     = 200 * time.Millisecond // how long a moved place may be in memory only
	upkeepPause   = time.Second
	checkPause    = 24 * time.Hour // between two checks of the whole file
	checkRows     = 500            // read at each upkeep while a check is under way: 0.1 % of a core
	evictionPause = time.Minute    // between two events about evictions: they take room too
)

// Run keeps the store in order until ctx ends: places to disk, retention, the write-ahead log, the paced check of the file,
// events. It returns after a last save.
func (s *Store) Run(ctx context.Context) error {
	upkeep := time.NewTicker(upkeepPause)
	defer upkeep.Stop()
	var save <-chan time.Time
	c := checker{due: time.Now().Add(time.Minute)}
	var told time.Time // of an eviction
	ok := true
	s.wake()
	for {
		var err error
		select {
		case <-ctx.Done():
			return s.exclusive(context.WithoutCancel(ctx), true, (*tx).save)
		case <-s.dirty:
			if save == nil {
				save = time.After(saveDelay)
			}
			continue
		case <-save:
			save = nil
			err = s.flush(ctx)
		case <-upkeep.C:
			err = errors.Join(s.upkeep(ctx), c.step(ctx, s))
			if time.Since(told) > evictionPause && s.tellEvicted() {
				told = time.Now()
			}
			s.tell()
		}
		if ctx.Err() == nil && ok != (err == nil) {
			if ok = err == nil; ok {
				s.o.Log.Info("record buffer works again")
			} else {
				s.o.Log.Error("record buffer in trouble", "err", err, "hint", gatepost.HintOf(err))
			}
		}
	}
}

// flush saves moved places, without a sync: losing them only sends records again. It also copies a long write-ahead log.
func (s *Store) flush(ctx context.Context) error {
	s.mu.Lock()
	moved := s.moved
	s.mu.Unlock()
	if moved {
		if err := s.exclusive(ctx, false, (*tx).save); err != nil {
			return err
		}
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil
	}
	defer func() { <-s.turn }()
	if s.f == nil || s.f.frames < checkpointFrames {
		return nil
	}
	return s.checkpoint(context.WithoutCancel(ctx))
}

// upkeep learns how old the waiting records are, leaves uplinks behind and gives back segments.
func (s *Store) upkeep(ctx context.Context) error {
	type stale struct {
		id       string
		position int64
	}
	var look []stale
	s.mu.Lock()
	for id, u := range s.uplinks {
		if p := u.place.first(); p < s.head && (u.position != p || u.oldest == 0) {
			look = append(look, stale{id, p})
		}
	}
	s.mu.Unlock()
	for _, l := range look {
		at, err := s.received(ctx, l.position)
		if err != nil {
			return err
		}
		s.mu.Lock()
		if u := s.uplinks[l.id]; u != nil {
			u.oldest, u.position = at, l.position
		}
		s.mu.Unlock()
	}
	s.leaveBehind()
	for _, seg := range s.releasable() {
		err := s.exclusive(ctx, false, func(t *tx) error {
			if t.st.Segs[seg].First == 0 || t.st.Segs[seg].Last > s.delivered(false) { // grown meanwhile
				return nil
			}
			return t.empty(seg)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tell hands queued events over.
func (s *Store) tell() {
	s.mu.Lock()
	es := s.events
	s.events = nil
	s.mu.Unlock()
	if s.o.Event == nil {
		return
	}
	for _, e := range es {
		s.o.Event(e)
	}
}

// tellEvicted makes one event of all evictions since the last one.
func (s *Store) tellEvicted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.evicted
	if v == (eviction{}) {
		return false
	}
	s.evicted = eviction{}
	s.event(gatepost.Event{
		Name:    "records_evicted",
		Message: fmt.Sprintf("the record buffer is full: %d telemetry and %d status records were given up", v.Telemetry, v.Status),
		Detail:  v,
	})
	s.o.Log.Warn("record buffer full: telemetry and status given up", "count", v.Telemetry+v.Status)
	return true
}

// checker reads the whole file a little at a time, so that damage is found while what it hit is still in the terminals.
type checker struct {
	due    time.Time
	seg    int
	after  int64
	minute int64 // of seen, once all segments are read
	src    int64
}

// step reads the next few rows. Damage that it meets is set aside like any other.
func (c *checker) step(ctx context.Context, s *Store) error {
	if time.Now().Before(c.due) {
		return nil
	}
	return s.reading(ctx, func(f *file) error {
		if c.seg < segments {
			var rows int64
			var last sql.NullInt64
			err := f.readers.QueryRowContext(ctx, fmt.Sprintf(
				"SELECT count(*),max(id),total(length(data||'')) FROM(SELECT id,data FROM seg%d WHERE id>? ORDER BY id LIMIT %d)", c.seg, checkRows),
				c.after).Scan(&rows, &last, new(float64))
			c.after = last.Int64
			for rows < checkRows && c.seg < segments {
				c.seg, c.after = c.seg+1, 0
				break
			}
			return err
		}
		var src, minute sql.NullInt64
		err := f.readers.QueryRowContext(ctx, fmt.Sprintf(
			"SELECT src,minute FROM(SELECT src,minute FROM seen WHERE (src,minute)>(?,?) ORDER BY src,minute LIMIT %d) ORDER BY src DESC,minute DESC LIMIT 1", checkRows),
			c.src, c.minute).Scan(&src, &minute)
		if errors.Is(err, sql.ErrNoRows) {
			*c = checker{due: time.Now().Add(checkPause)}
			return nil
		}
		c.src, c.minute = src.Int64, minute.Int64
		return err
	})
}
