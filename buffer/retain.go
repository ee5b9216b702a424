package buffer

import (
	"fmt"
	"math"

	"gatepost"
)

// eviction is the Detail of the event "records_evicted": undelivered records given up for want of room.
type eviction struct {
	Telemetry int64 `json:"telemetry,omitempty"`
	Status    int64 `json:"status,omitempty"`
	From      int64 `json:"from"`
	To        int64 `json:"to"`
}

func (v *eviction) add(w eviction) {
	if w == (eviction{}) {
		return
	}
	if v.From == 0 {
		v.From = w.From
	}
	v.From, v.To = min(v.From, w.From), max(v.To, w.To)
	v.Telemetry += w.Telemetry
	v.Status += w.Status
}

// evictRows is how many records are deleted at once, so that the write-ahead log stays short.
const evictRows = 2000

// makeRoom deletes until need more bytes fit: what is delivered, then telemetry, then status. It says whether they fit.
func (t *tx) makeRoom(need int64) (bool, error) {
	limit := t.s.o.MaxBytes
	if t.st.bytes()+need <= limit {
		return true, nil
	}
	if err := t.flush(); err != nil {
		return false, err
	}
	t.s.leaveBehind()
	enough := func() bool { return t.st.bytes()+need <= limit-limit/64 } // some more, so that this is done rarely
	delivered := t.s.delivered(true)
	for _, seg := range t.st.inOrder() {
		switch g := t.st.Segs[seg]; {
		case enough():
			return true, nil
		case g.Last <= delivered:
			if err := t.empty(seg); err != nil {
				return false, err
			}
		}
	}
	for _, seg := range t.st.inOrder() {
		for !enough() && t.st.Segs[seg].First != 0 && t.st.Segs[seg].First <= delivered {
			upto := min(delivered, t.st.Segs[seg].First+evictRows)
			if _, err := t.evict(seg, "id<=?", upto); err != nil {
				return false, err
			}
			if g := &t.st.Segs[seg]; g.First != 0 {
				g.First = upto + 1
			}
		}
	}
	for _, kind := range []int{kindTelemetry, kindStatus} {
		for _, seg := range t.st.inOrder() {
			for !enough() && t.st.Segs[seg].Count[kind-1] > 0 {
				cond := fmt.Sprintf("id IN(SELECT id FROM seg%d WHERE kind=? ORDER BY id LIMIT %d)", seg, evictRows)
				v, err := t.evict(seg, cond, kind)
				if err != nil {
					return false, err
				}
				if v == (eviction{}) { // the count was wrong; it must not hold us for ever
					g := &t.st.Segs[seg]
					g.Count[kind-1], g.Volume[kind-1] = 0, 0
				}
				t.evicted.add(v)
			}
		}
	}
	return t.st.bytes()+need <= limit, nil
}

// empty gives back a whole segment.
func (t *tx) empty(seg int) error {
	_, err := t.f.w.ExecContext(t.ctx, fmt.Sprintf("DELETE FROM seg%d", seg))
	t.st.Segs[seg] = segment{}
	t.changed = true
	if err != nil {
		return err
	}
	return t.save()
}

// evict deletes the records of a segment for which cond holds and says which.
func (t *tx) evict(seg int, cond string, arg any) (v eviction, err error) {
	rows, err := t.f.w.QueryContext(t.ctx, fmt.Sprintf("DELETE FROM seg%d WHERE %s RETURNING id,kind,length(data)", seg, cond), arg)
	if err != nil {
		return v, err
	}
	defer rows.Close()
	g := &t.st.Segs[seg]
	v.From = math.MaxInt64
	for rows.Next() {
		var id, kind, n int64
		if err := scan(rows, &id, &kind, &n); err != nil {
			return v, err
		}
		c := class(gatepost.Kind(word(t.s.words.text, kind)))
		g.Count[c] = max(0, g.Count[c]-1)
		g.Volume[c] = max(0, g.Volume[c]-rowOverhead-n)
		v.From, v.To = min(v.From, id), max(v.To, id)
		switch kind {
		case kindTelemetry:
			v.Telemetry++
		case kindStatus:
			v.Status++
		}
	}
	if err := rows.Err(); err != nil {
		return v, err
	}
	if v.To == 0 {
		v.From = 0
	}
	if g.records() == 0 {
		*g = segment{}
	}
	t.changed = true
	return v, rows.Close()
}

// releaseBytes is from where on the segment being filled is worth emptying when all of it is delivered.
const releaseBytes = 64 << 10

// releasable lists the segments that nobody needs any more.
func (s *Store) releasable() (segs []int) {
	delivered := s.delivered(false)
	until := int64(math.MaxInt64)
	if s.o.MaxAge > 0 {
		until = s.o.Now().Add(-s.o.MaxAge).UnixMilli()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.st.Segs {
		g := &s.st.Segs[i]
		if g.First > 0 && g.Last <= delivered && g.Newest < until && (i != s.st.Cur || g.bytes() >= releaseBytes) {
			segs = append(segs, i)
		}
	}
	return segs
}

// settle takes over what a transaction did besides. The caller holds mu, and s.st is still what it was before.
func (s *Store) settle(t *tx) {
	s.evicted.add(t.evicted)
	switch {
	case t.full && !s.full:
		s.full = true
		s.o.Log.Error("record buffer full: new punches stay in the terminals", "bytes", s.st.bytes(), "hint", fullHint)
	case !t.full && s.full && t.st.Next > s.st.Next:
		s.full = false
		s.o.Log.Info("record buffer has room again", "bytes", t.st.bytes())
	}
}

const fullHint = "records wait for a required uplink: see why it does not confirm, or raise buffer.max_size"
