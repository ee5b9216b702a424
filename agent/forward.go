package agent

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"gatepost"
	"gatepost/agent/config"
	"gatepost/buffer"
)

const (
	liveRecords  = 256       // most records in one Send of the live lane
	liveBehind   = 512       // a live lane further behind than this gives what waits to the backlog lane
	sendBytes    = 512 << 10 // most bytes of records read for one Send
	backlogFirst = 200       // records in the first Send of a backlog
	backlogMost  = 2000
	backlogAim   = 250 * time.Millisecond // how long one Send of a backlog should take, so that live records pass it
)

// uplink carries records to one far system and brings its commands: it dials, and while a link stands runs two lanes over
// it. Live records never wait for a backlog.
type uplink struct {
	a    *Agent
	conf config.Uplink
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{}

	mu     sync.Mutex // guards what follows
	link   gatepost.Link
	since  time.Time
	reason string // why there is no link
	hint   string
	class  gatepost.Class
	place  buffer.Place
}

func (a *Agent) startUplink(ctx context.Context, c config.Uplink) *uplink {
	u := &uplink{a: a, conf: c, log: a.log.With("uplink", c.ID), done: make(chan struct{}), since: a.opts.Now()}
	ctx, u.stop = context.WithCancel(ctx)
	go func() {
		defer close(u.done)
		u.run(ctx)
	}()
	return u
}

// run dials again and again until ctx ends. A lost link is a state, not a fault: nothing else stops for it.
func (u *uplink) run(ctx context.Context) {
	defer u.stop()
	take := func(m gatepost.Delivery) {
		m.Command.Origin = u.conf.ID
		u.a.take(ctx, m)
	}
	failures := 0
	wasUp := false
	for ctx.Err() == nil {
		began := time.Now()
		link, err := u.conf.Uplink.Dial(ctx, u.a.hello(), take)
		wait := jitter(backoffFirst, backoffMost, failures+1)
		if err == nil {
			u.setLink(link, nil)
			u.log.Info("link up", "attempt", failures+1)
			err = u.serve(ctx, link)
			if time.Since(began) >= stableAfter {
				failures = 0
			}
			wasUp = true
		}
		if ctx.Err() != nil {
			return
		}
		u.setLink(nil, err)
		if wasUp {
			// All agents of a fleet lose their broker in the same instant; they must not return in one.
			wait, wasUp = max(wait, 1+rand.N(u.a.opts.ReconnectWindow)), false
		}
		if gatepost.ClassOf(err) == gatepost.Misconfigured {
			wait = min(misconfiguredWait<<min(failures, 8), misconfiguredMost)
		}
		failures++
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (u *uplink) setLink(l gatepost.Link, err error) {
	u.mu.Lock()
	news := (u.link == nil) != (l == nil) || err != nil && err.Error() != u.reason
	was := u.since
	if (u.link == nil) != (l == nil) {
		u.since = u.a.opts.Now()
	}
	u.link, u.reason, u.hint, u.class = l, "", "", gatepost.Temporary
	if err != nil {
		u.reason, u.hint, u.class = err.Error(), gatepost.HintOf(err), gatepost.ClassOf(err)
	}
	u.mu.Unlock()
	switch {
	case !news || err == nil:
	case gatepost.ClassOf(err) == gatepost.Misconfigured:
		u.log.Error("uplink misconfigured", "err", err, "hint", gatepost.HintOf(err))
	default:
		u.log.Warn("no link", "err", err, "took", u.a.opts.Now().Sub(was).Round(time.Millisecond))
	}
}

func (u *uplink) current() gatepost.Link {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.link
}

// serve runs both lanes over one link until it is lost or ctx ends.
func (u *uplink) serve(ctx context.Context, link gatepost.Link) error {
	lanes, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	u.openPlace()
	gap := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { cut(u.live(lanes, link, gap)) })
	wg.Go(func() { cut(u.backlog(lanes, link, gap)) })
	select {
	case <-lanes.Done():
	case <-link.Done():
		cut(link.Err())
	}
	wg.Wait()
	err := context.Cause(lanes)
	if lerr := link.Err(); lerr != nil { // why the connection went says more than what failed for it
		err = lerr
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if cerr := link.Close(bye); cerr != nil {
		u.log.Debug("closing", "err", cerr)
	}
	return err
}

// openPlace gives all that waits now to the backlog lane; the live lane starts behind it.
func (u *uplink) openPlace() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.place = u.a.store.Place(u.conf.ID)
	u.jump(u.a.store.Head())
}

// jump moves the live lane's start to head and leaves the rest to the backlog lane. Records confirmed live behind an older
// gap are in the new gap too and go out again, under the same ids. u.mu is held.
func (u *uplink) jump(head int64) {
	if head > u.place.Live {
		u.place.Gap, u.place.Live = head, head
		u.a.store.SetPlace(u.conf.ID, u.place)
	}
}

// moveLive notes what the live lane has confirmed; moveDone what the backlog lane has. Where they meet there is no gap.
func (u *uplink) moveLive(to int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.place.Done == u.place.Gap {
		u.place.Done, u.place.Gap = to, to
	}
	u.place.Live = to
	u.a.store.SetPlace(u.conf.ID, u.place)
}

func (u *uplink) moveDone(to int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.place.Done = to
	if u.place.Done >= u.place.Gap {
		u.place.Done, u.place.Gap = u.place.Live, u.place.Live
	}
	u.a.store.SetPlace(u.conf.ID, u.place)
}

func (u *uplink) at() buffer.Place {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.place
}

// live sends what is stored from now on, as it comes.
func (u *uplink) live(ctx context.Context, link gatepost.Link, gap chan<- struct{}) error {
	for {
		at := u.at().Live
		if err := u.a.store.Wait(ctx, at); err != nil {
			return err
		}
		head := u.a.store.Head()
		if head-at > liveBehind {
			u.mu.Lock()
			u.jump(head)
			u.mu.Unlock()
			select {
			case gap <- struct{}{}:
			default:
			}
			continue
		}
		rs, err := u.a.store.Read(ctx, at, head, liveRecords, sendBytes)
		if err != nil {
			return err
		}
		if len(rs) == 0 { // retention took them meanwhile
			u.moveLive(head)
			continue
		}
		if err := u.send(ctx, link, rs, false, u.moveLive); err != nil {
			return err
		}
	}
}

// backlog drains the gap, in pieces that adapt to the link so that a live record passes between them.
func (u *uplink) backlog(ctx context.Context, link gatepost.Link, gap <-chan struct{}) error {
	size := backlogFirst
	for {
		at := u.at()
		if at.Done >= at.Gap {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-gap:
			}
			continue
		}
		rs, err := u.a.store.Read(ctx, at.Done, at.Gap, size, sendBytes)
		if err != nil {
			return err
		}
		if len(rs) == 0 {
			u.moveDone(at.Gap)
			continue
		}
		began := time.Now()
		if err := u.send(ctx, link, rs, true, u.moveDone); err != nil {
			return err
		}
		switch took := time.Since(began); {
		case took < backlogAim/2 && len(rs) == size:
			size = min(2*size, backlogMost)
		case took > 2*backlogAim:
			size = max(size/2, 1)
		}
	}
}

// send sends rs to the end, parking each record that can never pass, and moves the place as they are confirmed.
func (u *uplink) send(ctx context.Context, link gatepost.Link, rs []gatepost.Stored, replay bool, move func(int64)) error {
	for len(rs) > 0 {
		n, err := link.Send(ctx, rs, replay)
		if n > 0 {
			move(rs[n-1].Seq)
			rs = rs[n:]
		}
		switch {
		case err == nil && len(rs) == 0:
			return nil
		case err == nil:
			return fmt.Errorf("the uplink confirmed %d records and named no reason for the rest", n)
		case gatepost.ClassOf(err) != gatepost.Permanent || len(rs) == 0:
			return err
		}
		u.log.Error("record parked: it can never pass", "record", rs[0].ID.String(), "seq", rs[0].Seq, "err", err)
		if err := u.a.store.Park(ctx, u.conf.ID, rs[0], err.Error()); err != nil {
			return err
		}
		move(rs[0].Seq)
		rs = rs[1:]
	}
	return nil
}

// drain waits until the link, if there is one, has confirmed all that is stored by now, or until ctx ends.
func (u *uplink) drain(ctx context.Context) {
	head := u.a.store.Head()
	link := u.current()
	if link == nil {
		return
	}
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for u.at().Live < head {
		select {
		case <-ctx.Done():
			return
		case <-link.Done():
			return
		case <-t.C:
		}
	}
}
