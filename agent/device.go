package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"gatepost"
	"gatepost/agent/book"
	"gatepost/agent/config"
	"gatepost/buffer"
)

// Waiting between two tries of a device.
const (
	backoffFirst      = time.Second
	backoffMost       = time.Minute
	misconfiguredWait = 2 * time.Minute // doubling to misconfiguredMost: terminals lock out who hammers them with a wrong key
	misconfiguredMost = 15 * time.Minute
	stableAfter       = time.Minute // a session this long starts the back-off anew
	kicksBeforeShort  = 3           // sessions thrown out early before short connections are used instead
	pollDefault       = 10 * time.Second
	reconcileDefault  = time.Minute     // polling beside live events
	clockEvery        = 5 * time.Minute // between two looks at the terminal's clock
	fullPause         = 5 * time.Second // between two tries to listen while the buffer is full
	soon              = 2 * time.Second // from the beginning of listening to the first look at the log
)

// device runs one configured terminal: one goroutine owns its connection.
type device struct {
	a    *Agent
	conf config.Device
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{}
	wake chan struct{}  // ends a wait early: a command wants the terminal, or a pause was lifted
	pull chan pullOrder // asks the owner of the session to read the log

	slots, doorSlots chan struct{} // one for each command under way

	mu          sync.Mutex // guards what follows
	told        bool       // the first state was published
	state       gatepost.State
	since       time.Time
	reason      string
	hint        string
	session     gatepost.Session // nil while not connected
	using       int              // commands that use it
	online      chan struct{}    // closed when a session comes; replaced when it goes
	info        gatepost.Info
	identity    string
	lastContact time.Time
	lastFull    time.Time // when the whole log was last read, or the device started
	skew        time.Duration
	skewSet     bool
	days        map[int64]struct{} // wall days seen since a log read began, until what it proved gone is pruned
	added       int                // records newly stored since then
}

type pullOrder struct {
	full  bool
	reply chan pullAnswer
}

type pullAnswer struct {
	read  gatepost.LogRead
	added int
	err   error
}

func (a *Agent) startDevice(ctx context.Context, c config.Device) *device {
	d := &device{
		a: a, conf: c, log: a.log.With("device", string(c.ID)),
		done: make(chan struct{}), wake: make(chan struct{}, 1), pull: make(chan pullOrder),
		online: make(chan struct{}), slots: make(chan struct{}, maxCommands), doorSlots: make(chan struct{}, maxCommands),
		state: gatepost.StateConnecting, since: a.now(), lastFull: time.Now(),
	}
	ctx, d.stop = context.WithCancel(ctx)
	go func() {
		defer close(d.done)
		d.run(ctx)
	}()
	return d
}

// run opens the device again and again until ctx ends.
func (d *device) run(ctx context.Context) {
	defer d.stop()
	if !d.conf.Enabled {
		d.setState(ctx, gatepost.StateDisabled, "enabled: false in the config", "")
		return
	}
	d.setState(ctx, gatepost.StateConnecting, "", "")
	var failures, kicks int
	short := false
	for ctx.Err() == nil {
		began := time.Now()
		online, err := d.visit(ctx, short)
		if ctx.Err() != nil {
			return
		}
		lasted := time.Since(began)
		switch {
		case err == nil: // a short connection did its work
			failures = 0
			sleep(ctx, d.pollEvery(false), d.wake)
			continue
		case online && lasted >= stableAfter:
			failures, kicks = 0, 0
		case online && kicked(err):
			if kicks++; kicks == kicksBeforeShort && !short {
				short = true
				d.log.Warn("terminal keeps closing the connection; polling it with short ones", "err", err)
				d.event(ctx, gatepost.Event{Name: "short_connections",
					Message: "the terminal keeps closing the connection; it is polled with short ones instead. Does other software use it?"})
			}
		}
		failures++
		wait, wake := jitter(backoffFirst, backoffMost, failures), d.wake
		if gatepost.ClassOf(err) == gatepost.Misconfigured {
			wait, wake = min(misconfiguredWait<<min(failures-1, 8), misconfiguredMost), nil
			d.setState(ctx, gatepost.StateMisconfigured, err.Error(), gatepost.HintOf(err))
		} else {
			d.setState(ctx, gatepost.StateBackoff, err.Error(), gatepost.HintOf(err))
		}
		d.log.Debug("trying again", "attempt", failures, "wait", wait, "err", err)
		sleep(ctx, wait, wake)
	}
}

// jitter is a random wait in (0, first*2^(failures-1)], the bound itself at most most.
func jitter(first, most time.Duration, failures int) time.Duration {
	bound := most
	if shift := failures - 1; shift < 16 {
		bound = min(first<<shift, most)
	}
	return 1 + rand.N(bound)
}

// kicked tells a connection that the other end closed from one that failed otherwise.
func kicked(err error) bool {
	return errors.Is(err, gatepost.ErrHungUp) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// sleep ends after t, with ctx, or when something comes from wake.
func sleep(ctx context.Context, t time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-wake:
	}
}

// visit is one session from opening to its end. It returns whether the terminal was online in between. With short it
// closes after one reading of the log and returns nil.
func (d *device) visit(ctx context.Context, short bool) (online bool, err error) {
	s, err := d.conf.Device.Open(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		d.setSession(nil)
		if cerr := s.Close(); cerr != nil {
			d.log.Debug("closing", "err", cerr)
		}
	}()
	if err := d.identify(ctx, s.Info()); err != nil {
		return false, err
	}
	d.measureSkew(ctx, s)
	d.setSession(s)
	d.setState(ctx, gatepost.StateOnline, "", "")

	switch err := d.poll(ctx, s); {
	case err == nil:
		d.governClock(ctx, s)
	case !errors.Is(err, buffer.ErrFull):
		return true, err
	}
	if short {
		return true, d.serveShort(ctx, s)
	}
	return true, d.attend(ctx, s)
}

// serveShort keeps a short connection open for a moment, and for as long as a command uses it.
func (d *device) serveShort(ctx context.Context, s gatepost.Session) error {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case o := <-d.pull:
			if err := d.answer(ctx, s, o); err != nil {
				return err
			}
		case <-timer.C:
			if d.retire() {
				return nil
			}
			timer.Reset(50 * time.Millisecond)
		}
	}
}

// attend listens, if the terminal tells punches as they happen, and polls its log: as the only source, or beside
// listening to reconcile against the terminal's own counters.
func (d *device) attend(ctx context.Context, s gatepost.Session) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	lost := make(chan error, 1)
	live, listens := s.(gatepost.LiveSource)
	listen := time.NewTimer(0)
	defer listen.Stop()
	if !listens {
		listen.Stop()
	}
	// Soon: what was punched between catching up and listening.
	poll := time.NewTimer(soon)
	defer poll.Stop()
	clock := time.NewTicker(clockEvery)
	defer clock.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-listen.C:
			wg.Go(func() { lost <- live.Listen(ctx, d.store) })
		case err = <-lost:
			switch {
			case gatepost.ClassOf(err) == gatepost.Unsupported: // polling alone will do
				listens = false
				continue
			case errors.Is(err, buffer.ErrFull):
				listen.Reset(fullPause)
			case err == nil:
				err = errors.New("the session ended")
			}
		case o := <-d.pull:
			err = d.answer(ctx, s, o)
		case <-clock.C:
			d.measureSkew(ctx, s)
		case <-poll.C:
			err = d.poll(ctx, s)
			poll.Reset(d.pollEvery(listens))
		}
		// With a full buffer the terminal keeps its records; the session stays, so that its door can still be opened.
		if err != nil && !errors.Is(err, buffer.ErrFull) {
			return err
		}
	}
}

// pollEvery is how often the log is looked at.
func (d *device) pollEvery(listens bool) time.Duration {
	switch {
	case d.conf.Poll > 0:
		return d.conf.Poll
	case listens:
		return reconcileDefault
	}
	return pollDefault
}

// answer reads the log on somebody's order. A failure that ends the session is returned too.
func (d *device) answer(ctx context.Context, s gatepost.Session, o pullOrder) error {
	r, added, err := d.readLog(ctx, s, o.full)
	o.reply <- pullAnswer{r, added, err}
	if gatepost.ClassOf(err) == gatepost.Unsupported {
		return nil
	}
	return err
}

// poll looks for what is new in the log; all of it is read when that was last done long ago, and then the clock is looked
// after too, as nothing is unread.
func (d *device) poll(ctx context.Context, s gatepost.Session) error {
	d.mu.Lock()
	due := time.Since(d.lastFull) >= d.conf.FullRead
	d.mu.Unlock()
	if !due {
		return d.read(ctx, s, false)
	}
	d.measureSkew(ctx, s)
	if err := d.read(ctx, s, true); err != nil {
		return err
	}
	d.mu.Lock()
	d.lastFull = time.Now()
	d.mu.Unlock()
	d.governClock(ctx, s)
	return nil
}

// read reads the log and takes "cannot" for an answer; then the clock at least shows that the terminal is there.
func (d *device) read(ctx context.Context, s gatepost.Session, full bool) error {
	_, _, err := d.readLog(ctx, s, full)
	if gatepost.ClassOf(err) != gatepost.Unsupported {
		return err
	}
	c, ok := s.(gatepost.Clock)
	if !ok {
		return nil
	}
	if _, err := c.Time(ctx); err != nil && gatepost.ClassOf(err) != gatepost.Unsupported {
		return err
	}
	d.contact()
	return nil
}

// readLog reads what the terminal's log has beyond the kept cursor. The cursor moves only after a complete read whose
// records are all on disk.
func (d *device) readLog(ctx context.Context, s gatepost.Session, full bool) (gatepost.LogRead, int, error) {
	src, ok := s.(gatepost.LogSource)
	if !ok {
		return gatepost.LogRead{}, 0, errors.ErrUnsupported
	}
	identity := d.who()
	cursor, err := d.a.book.Cursor(ctx, d.conf.ID, identity)
	if err != nil {
		return gatepost.LogRead{}, 0, err
	}
	d.mu.Lock()
	d.days, d.added = map[int64]struct{}{}, 0
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.days = nil
		d.mu.Unlock()
	}()
	r, err := src.ReadLog(ctx, cursor, full, d.store)
	d.mu.Lock()
	added := d.added
	d.mu.Unlock()
	if err != nil {
		return r, added, fmt.Errorf("read the log: %w", err)
	}
	d.contact()
	if r.Next != cursor {
		if err := d.a.book.SetCursor(ctx, d.conf.ID, identity, r.Next); err != nil {
			return r, added, err
		}
	}
	if r.Full {
		// Days that the terminal no longer has cannot come again, so their doubles need no refusing.
		if _, err := d.a.store.Prune(ctx, identity, d.onDay); err != nil {
			return r, added, err
		}
	}
	if added > 0 {
		d.log.Debug("log read", "count", added)
	}
	return r, added, nil
}

// onDay says whether a record of that wall day has come since the log read began.
func (d *device) onDay(day int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.days[day]
	return ok
}

// store is the Emit of this device.
func (d *device) store(ctx context.Context, rs ...gatepost.Record) error {
	d.mu.Lock()
	s := stamper{device: d.conf.ID, identity: d.identity, zone: d.conf.Zone, clock: d.a.clock, skew: d.skew, skewSet: d.skewSet}
	// Days are noted before the records are stored: a prune, which asks onDay in the same turn as it deletes, spares them.
	if d.days != nil {
		for i := range rs {
			if rs[i].Key != "" {
				d.days[rs[i].Wall.Minute()/gatepost.MinutesPerDay] = struct{}{}
			}
		}
	}
	d.mu.Unlock()
	es, err := s.entries(rs)
	if err != nil {
		return err
	}
	added, err := d.put(ctx, es)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.added += added
	if err != nil {
		return err
	}
	d.lastContact = d.a.now()
	return nil
}

// put stores es. Where there is room for a part only, it stores the front: that is progress, though the whole is not
// confirmed; what comes again is refused as a double.
func (d *device) put(ctx context.Context, es []buffer.Entry) (added int, err error) {
	added, err = d.a.store.Put(ctx, es...)
	if len(es) < 2 || !errors.Is(err, buffer.ErrFull) {
		return added, err
	}
	half := len(es) / 2
	added, err = d.put(ctx, es[:half])
	if err != nil {
		return added, err
	}
	more, err := d.put(ctx, es[half:])
	return added + more, err
}

// identify fixes who the terminal is. Another serial at the same address is another terminal: it gets a new identity and
// its own place in the log, and an event says so. A terminal that told none at first contact keeps the device id for good:
// with another identity all its records would be new ones.
func (d *device) identify(ctx context.Context, info gatepost.Info) error {
	known, found, err := d.a.book.Device(ctx, d.conf.ID)
	if err != nil {
		return err
	}
	identity := info.Serial
	switch unnamed := "device:" + string(d.conf.ID); {
	case found && (identity == "" || known.Identity == unnamed):
		identity = known.Identity
	case identity == "":
		identity = unnamed
	}
	d.mu.Lock()
	if d.identity != identity {
		d.skewSet = false // another terminal's clock
	}
	d.identity, d.info = identity, info
	d.mu.Unlock()
	now := d.a.now()
	if found && known.Identity != identity {
		d.log.Warn("another terminal answers at this address", "was", known.Identity, "is", identity)
		if err := d.a.emitFor(ctx, d.conf.ID, gatepost.Event{Name: "terminal_changed",
			Message: fmt.Sprintf("terminal %s was replaced by %s", known.Identity, identity),
			Detail:  map[string]string{"was": known.Identity, "is": identity}}); err != nil {
			return err
		}
		known.FirstSeen = now
	}
	if !found {
		known.FirstSeen = now
	}
	err = d.a.book.SetDevice(ctx, book.Device{ID: d.conf.ID, Identity: identity, Driver: d.conf.Driver, Model: info.Model,
		Firmware: info.Firmware, Doors: info.Doors, FirstSeen: known.FirstSeen, LastContact: now})
	if err != nil {
		return err
	}
	d.contact()
	return nil
}

// event stores what the agent has to say about the device; a store that cannot take it is reported where punches fail.
func (d *device) event(ctx context.Context, e gatepost.Event) {
	if err := d.a.emitFor(ctx, d.conf.ID, e); err != nil {
		d.log.Error("event not stored", "err", err)
	}
}

func (d *device) setState(ctx context.Context, s gatepost.State, reason, hint string) {
	d.mu.Lock()
	was := d.state
	first := !d.told
	d.told = true
	same := was == s && !first && (s == gatepost.StateOnline || d.reason == reason)
	attempted := d.since
	if was != s {
		d.since = d.a.now()
	}
	d.state, d.reason, d.hint = s, reason, hint
	d.mu.Unlock()
	if same {
		return
	}
	if was == s && !first { // the same state for another reason: a line for the log, not news
		d.log.Debug("still "+string(s), "err", reason)
		return
	}
	switch s {
	case gatepost.StateMisconfigured:
		d.log.Error("misconfigured", "err", reason, "hint", hint)
	case gatepost.StateBackoff:
		d.log.Warn("terminal lost", "err", reason, "hint", hint)
	case gatepost.StateOnline:
		d.log.Info("terminal online", "took", d.a.now().Sub(attempted).Round(time.Millisecond))
	default:
		d.log.Info(string(s))
	}
	if err := d.a.emitFor(ctx, d.conf.ID, gatepost.Status{State: s, Reason: reason, Hint: hint}); err != nil && ctx.Err() == nil {
		d.log.Error("status not stored", "err", err)
	}
	d.a.changed()
}

func (d *device) setSession(s gatepost.Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.swapSession(s)
}

// swapSession is setSession with d.mu held.
func (d *device) swapSession(s gatepost.Session) {
	was := d.session
	d.session = s
	switch {
	case s != nil && was == nil:
		close(d.online)
	case s == nil && was != nil:
		d.online = make(chan struct{})
	}
}

// retire takes the session away from commands, unless one uses it.
func (d *device) retire() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.using > 0 {
		return false
	}
	d.swapSession(nil)
	return true
}

// gone says why there is no session any more, after done was closed.
func (d *device) gone() error {
	select {
	case <-d.a.halting:
		return errStopping
	default:
		return fmt.Errorf("%s was taken out of the config, or its settings changed", d.conf.ID)
	}
}

func (d *device) who() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.identity
}

func (d *device) contact() {
	d.mu.Lock()
	d.lastContact = d.a.now()
	d.mu.Unlock()
}
