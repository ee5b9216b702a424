package buffer

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"gatepost"
)

// Log names this incarnation of the file. It changes when a damaged file is replaced; numbers keep growing all the same.
func (s *Store) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log
}

// Head is the number of the newest record on disk, 0 before the first.
func (s *Store) Head() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head
}

// Wait returns when Head is beyond after.
func (s *Store) Wait(ctx context.Context, after int64) error {
	for {
		s.mu.Lock()
		head, grown := s.head, s.grown
		s.mu.Unlock()
		if head > after {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// reading runs do with the file held open. What it finds damaged is set aside before it returns.
func (s *Store) reading(ctx context.Context, do func(*file) error) error {
	s.open.RLock()
	f := s.f
	err := errNotOpen
	if f != nil {
		err = do(f)
	}
	s.open.RUnlock()
	if err == nil || ctx.Err() != nil {
		return err
	}
	if damaged(err) {
		if aerr := s.replace(ctx, f, err); aerr != nil {
			return s.fault(aerr)
		}
	}
	return s.fault(err)
}

// Read returns records in (after, upto] in order, at most maxRecords of them and about maxBytes of data, but at least one
// where there is one. Nothing means that nothing is left there.
func (s *Store) Read(ctx context.Context, after, upto int64, maxRecords, maxBytes int) ([]gatepost.Stored, error) {
	s.mu.Lock()
	upto = min(upto, s.head)
	st, text, log := s.st, s.words.text, s.log
	s.mu.Unlock()
	var rs []gatepost.Stored
	if after >= upto || maxRecords < 1 {
		return nil, nil
	}
	err := s.reading(ctx, func(f *file) error {
		left := maxBytes
		for _, seg := range st.inOrder() {
			if g := st.Segs[seg]; g.Last <= after || g.First > upto {
				continue
			}
			stmt, err := f.reader(ctx, seg)
			if err != nil {
				return err
			}
			rows, err := stmt.QueryContext(ctx, after, upto, maxRecords-len(rs))
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var r gatepost.Stored
				if err := scanRow(rows, &r, text); err != nil {
					return err
				}
				r.Log = log
				if left -= len(r.Data); left < 0 && len(rs) > 0 {
					return nil
				}
				rs = append(rs, r)
			}
			if err := rows.Err(); err != nil {
				return err
			}
			rows.Close()
			if len(rs) == maxRecords {
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return rs, nil
}

// reader is the statement that reads segment seg.
func (f *file) reader(ctx context.Context, seg int) (_ *sql.Stmt, err error) {
	f.mu.Lock()
	stmt := f.read[seg]
	f.mu.Unlock()
	if stmt != nil {
		return stmt, nil
	}
	stmt, err = f.prepare(ctx, f.readers, fmt.Sprintf("SELECT id,%s FROM seg%d WHERE id>? AND id<=? ORDER BY id LIMIT ?", columns, seg))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.read[seg] = stmt
	return stmt, err
}

// Has says whether the record id of source at minute was ever put and not yet pruned.
func (s *Store) Has(ctx context.Context, source string, minute int64, id gatepost.ID) (has bool, err error) {
	s.mu.Lock()
	src := s.words.of(source)
	s.mu.Unlock()
	if src == 0 {
		return false, nil
	}
	err = s.reading(ctx, func(f *file) error {
		return f.readers.QueryRowContext(ctx, "SELECT EXISTS(SELECT 1 FROM seen WHERE src=? AND minute=? AND hash=?)",
			src, minute, seenHash(id)).Scan(&has)
	})
	return has, err
}

// Parked lists parked records, newest first.
func (s *Store) Parked(ctx context.Context, limit int) (ps []ParkedRecord, err error) {
	err = s.reading(ctx, func(f *file) error {
		rows, err := f.readers.QueryContext(ctx, "SELECT at,uplink,reason,rec FROM parked ORDER BY n DESC LIMIT ?", limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var p ParkedRecord
			var at int64
			var rec []byte
			if err := scan(rows, &at, &p.Uplink, &p.Reason, &rec); err != nil {
				return err
			}
			if err := json.Unmarshal(rec, &p.Stored); err != nil {
				return err
			}
			p.At = time.UnixMilli(at).UTC()
			ps = append(ps, p)
		}
		return rows.Err()
	})
	return ps, err
}

// Stats counts. It touches no table.
func (s *Store) Stats() Stats {
	var onDisk int64
	for _, suffix := range []string{"", "-wal"} {
		if fi, err := os.Stat(s.path + suffix); err == nil {
			onDisk += fi.Size()
		}
	}
	now := s.o.Now().UnixMilli()
	s.mu.Lock()
	defer s.mu.Unlock()
	x := Stats{
		Log: s.log, Head: s.head, Records: s.st.records(), Bytes: s.st.bytes(), Seen: s.st.Seen,
		Uplinks: make(map[string]gatepost.Backlog), Full: s.full, File: onDisk,
		Written: s.written, Commits: s.commits, Syncs: s.syncs,
	}
	for _, n := range s.parked {
		x.Parked += n
	}
	for id, u := range s.uplinks {
		records, bytes := u.place.waiting(&s.st, s.head)
		b := gatepost.Backlog{Records: records, Bytes: bytes, Parked: s.parked[id]}
		if records > 0 && u.oldest > 0 {
			b.Oldest = float64(max(0, now-u.oldest)) / 1000
		}
		x.Uplinks[id] = b
	}
	return x
}

// received is when the first record after after came, ms; 0 where there is none or the clock was not to be trusted.
func (s *Store) received(ctx context.Context, after int64) (at int64, err error) {
	s.mu.Lock()
	st, unsynced := s.st, s.words.of(gatepost.ClockUnsynced)
	s.mu.Unlock()
	for _, seg := range st.inOrder() {
		if st.Segs[seg].Last <= after {
			continue
		}
		err := s.reading(ctx, func(f *file) error {
			return f.readers.QueryRowContext(ctx, fmt.Sprintf("SELECT iif(clock=?,0,recv) FROM seg%d WHERE id>? ORDER BY id LIMIT 1", seg), unsynced, after).Scan(&at)
		})
		if !errors.Is(err, sql.ErrNoRows) {
			return at, err
		}
	}
	return 0, nil
}
