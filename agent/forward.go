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
	sendBytes   = 512 << 10              // most bytes of records read for one Send
	sendAim     = 250 * time.Millisecond // how long one Send should take, so that what comes next is not kept waiting
	liveFirst   = 32                     // records in the first Send of the live lane
	liveMost    = 256
	backlogMost = 2000
)

// piece is how many records go into one Send; it follows the link's speed.
type piece struct{ size, most int }

func (p *piece) took(t time.Duration, records int) {
	switch {
	case t < sendAim/2 && records >= p.size:
		p.size = min(2*p.size, p.most)
	case t > 2*sendAim:
		p.size = max(p.size/4, 1)
	case t > sendAim:
		p.size = max(p.size/2, 1)
	}
}

// uplink carries records to one far system and brings its commands: it dials, and while a link stands runs two lanes over
// it. Live records never wait for a backlog.
type uplink struct {
	a    *Agent
	conf config.Uplink
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{}

	mu     sync.Mutex // guards what follows, and reading and writing the place as one step
	link   gatepost.Link
	since  time.Time
	reason string // why there is no link
	hint   string
	class  gatepost.Class
}

func (a *Agent) startUplink(ctx context.Context, c config.Uplink) *uplink {
	u := &uplink{a: a, conf: c, log: a.log.With("uplink", c.ID), done: make(chan struct{}), since: a.now()}
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
		sleep(ctx, wait, nil)
	}
}

func (u *uplink) setLink(l gatepost.Link, err error) {
	u.mu.Lock()
	news := (u.link == nil) != (l == nil) || err != nil && err.Error() != u.reason
	was := u.since
	if (u.link == nil) != (l == nil) {
		u.since = u.a.now()
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
		u.log.Warn("no link", "err", err, "took", u.a.now().Sub(was).Round(time.Millisecond))
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
	u.jump(u.a.store.Head()) // all that waits now is a backlog
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

// move changes the uplink's place, which the store keeps: by the lanes as they confirm, by retention if it left us behind.
func (u *uplink) move(change func(*buffer.Place)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.at()
	change(&p)
	u.a.store.SetPlace(u.conf.ID, p)
}

func (u *uplink) at() buffer.Place { return u.a.store.Place(u.conf.ID) }

// jump moves the live lane's start to head and leaves the rest to the backlog lane. Records confirmed live behind an older
// gap are in the new gap too and go out again, under the same ids.
func (u *uplink) jump(head int64) {
	u.move(func(p *buffer.Place) {
		if head > p.Live {
			p.Gap, p.Live = head, head
		}
	})
}

// moveLive notes what the live lane has confirmed; moveDone what the backlog lane has. Where they meet there is no gap.
func (u *uplink) moveLive(to int64) {
	u.move(func(p *buffer.Place) {
		if p.Done == p.Gap {
			p.Done, p.Gap = to, to
		}
		p.Live = to
	})
}

func (u *uplink) moveDone(to int64) {
	u.move(func(p *buffer.Place) {
		p.Done = to
		if p.Done >= p.Gap {
			p.Done, p.Gap = p.Live, p.Live
		}
	})
}

// live sends what is stored from now on, as it comes. When more has come together than a Send or two take, as when a
// terminal's log is caught up, it is a backlog: the live lane starts anew behind it.
func (u *uplink) live(ctx context.Context, link gatepost.Link, gap chan<- struct{}) error {
	next := piece{liveFirst, liveMost}
	for {
		at := u.at().Live
		if err := u.a.store.Wait(ctx, at); err != nil {
			return err
		}
		head := u.a.store.Head()
		if head-at > int64(2*next.size) {
			u.jump(head)
			select {
			case gap <- struct{}{}:
			default:
			}
			continue
		}
		rs, err := u.a.store.Read(ctx, at, head, next.size, sendBytes)
		if err != nil {
			return err
		}
		if len(rs) == 0 { // retention took them meanwhile
			u.moveLive(head)
			continue
		}
		began := time.Now()
		if err := u.send(ctx, link, rs, false, u.moveLive); err != nil {
			return err
		}
		next.took(time.Since(began), len(rs))
	}
}

// backlog drains the gap.
func (u *uplink) backlog(ctx context.Context, link gatepost.Link, gap <-chan struct{}) error {
	next := piece{liveMost, backlogMost}
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
		rs, err := u.a.store.Read(ctx, at.Done, at.Gap, next.size, sendBytes)
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
		next.took(time.Since(began), len(rs))
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
