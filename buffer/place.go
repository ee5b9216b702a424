package buffer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"gatepost"
)

// Place is how far an uplink has confirmed the log. Everything up to Done is confirmed; (Done, Gap] drains as backlog;
// (Gap, Live] was confirmed on the live lane. Without a gap the three are equal.
type Place struct{ Done, Gap, Live int64 }

// uplink is a reader of the log; Store.mu guards it.
type uplink struct {
	Uplink
	place Place
	// When the record at position was received, ms; 0 where the clock was not to be trusted then. Run keeps it up to date.
	oldest   int64
	position int64
}

// waiting is what the uplink at p has not confirmed.
func (p Place) waiting(st *state, head int64) (records, bytes int64) {
	r1, b1 := st.within(p.Done, p.Gap)
	r2, b2 := st.within(p.Live, head)
	return r1 + r2, b1 + b2
}

// first is the position after which the first unconfirmed record lies.
func (p Place) first() int64 {
	if p.Done < p.Gap {
		return p.Done
	}
	return p.Live
}

// merge is the place of an uplink that is known to be at p and at q: places never go back.
func (p Place) merge(q Place) Place {
	p = Place{Done: max(p.Done, q.Done), Gap: max(p.Gap, q.Gap), Live: max(p.Live, q.Live)}
	p.Gap = max(p.Gap, p.Done)
	p.Live = max(p.Live, p.Gap)
	if p.Done == p.Gap {
		return at(p.Live)
	}
	return p
}

// at is the place of an uplink that has confirmed everything up to seq.
func at(seq int64) Place { return Place{Done: seq, Gap: seq, Live: seq} }

// SetUplinks says which uplinks there are, at start and at each reload. Nothing is deleted before it was called. The place
// of an uplink that is gone is dropped.
func (s *Store) SetUplinks(ctx context.Context, us []Uplink) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.mu.Lock()
	old := s.uplinks
	s.uplinks = make(map[string]*uplink, len(us))
	for _, u := range us {
		place := at(s.head)
		if u.FromOldest || s.salvaged {
			place = at(s.st.oldest() - 1)
		}
		if was := old[u.ID]; was != nil {
			place = was.place
		}
		s.uplinks[u.ID] = &uplink{Uplink: u, place: place}
	}
	s.known, s.salvaged, s.moved = true, false, true
	s.mu.Unlock()
	for id, u := range old {
		if !slices.ContainsFunc(us, func(n Uplink) bool { return n.ID == id }) {
			s.o.Log.Info("uplink removed; its place is dropped", "uplink", id, "record", u.place.Done)
		}
	}
	return s.write(ctx, true, (*tx).save, nil, nil)
}

// Place is where uplink stands; the zero Place where there is no such uplink.
func (s *Store) Place(uplink string) Place {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.uplinks[uplink]; u != nil {
		return u.place
	}
	return Place{}
}

// SetPlace moves uplink, in memory at once and in the file with the next commit or within 200 ms. p must not be ahead of
// what was confirmed. A place never goes back: an uplink that was left behind meanwhile stays where it was put.
func (s *Store) SetPlace(uplink string, p Place) {
	s.mu.Lock()
	u := s.uplinks[uplink]
	if u != nil {
		p = Place{Done: min(p.Done, s.head), Gap: min(p.Gap, s.head), Live: min(p.Live, s.head)}
		if p = u.place.merge(p); p != u.place {
			u.place = p
			s.moved = true
		}
	}
	s.mu.Unlock()
	s.wake()
}

// delivered is up to where no uplink needs the log any more, 0 before the uplinks are known. Where there is none at all,
// nobody waits for anything: what is oldest may go when room is needed, but not before.
func (s *Store) delivered(needRoom bool) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.known || len(s.uplinks) == 0 && !needRoom {
		return 0
	}
	upto := s.st.Next - 1
	for _, u := range s.uplinks {
		upto = min(upto, u.place.Done)
	}
	return upto
}

// An uplink that is not required is left behind when it lags by this age, or by this part of MaxBytes.
const (
	leaveAfter = 7 * 24 * time.Hour
	leaveShare = 4
)

// leaveBehind lets uplinks jump that are not required and lag too far, so that they hold no disk for ever.
func (s *Store) leaveBehind() {
	now := s.o.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := s.o.MaxBytes / leaveShare
	for id, u := range s.uplinks {
		_, bytes := u.place.waiting(&s.st, s.head)
		late := u.oldest > 0 && u.position == u.place.first() && now.Sub(time.UnixMilli(u.oldest)) > leaveAfter
		if u.Required || !s.known || bytes <= limit && !late {
			continue
		}
		from, to := u.place.first()+1, s.head
		if _, live := u.place.within(&s.st, s.head); u.place.Done < u.place.Gap && live <= limit/2 {
			to = u.place.Gap // the live lane keeps up: only the backlog is given up
			u.place = at(u.place.Live)
		} else {
			u.place = at(s.head)
		}
		s.moved = true
		s.o.Log.Warn("uplink left behind: it was too far back", "uplink", id, "record", from, "count", to-from+1)
		s.event(gatepost.Event{
			Name:    "uplink_gap",
			Message: fmt.Sprintf("uplink %s was left behind: it will not get records %d to %d", id, from, to),
			Detail:  Gap{Uplink: id, From: from, To: to},
		})
	}
}

// within is what waits on the live lane.
func (p Place) within(st *state, head int64) (records, bytes int64) { return st.within(p.Live, head) }

// Gap is the Detail of the event "uplink_gap": records From to To were given up for Uplink.
type Gap struct {
	Uplink string `json:"uplink"`
	From   int64  `json:"from"`
	To     int64  `json:"to"`
}

// event queues e for Run to hand over. The caller holds mu.
func (s *Store) event(e gatepost.Event) {
	const most = 100 // nobody runs Run
	if len(s.events) < most {
		s.events = append(s.events, e)
	}
}
