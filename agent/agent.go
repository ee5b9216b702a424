// Package agent runs the terminals and far systems of one site: it opens sessions and reads logs, stamps and stores what
// comes, forwards it, judges commands and runs them, and says how everything is. It holds all policy (when, how often,
// again or not) and knows no protocol: drivers, uplinks and their lists are main's to choose.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"gatepost"
	"gatepost/agent/book"
	"gatepost/agent/config"
	"gatepost/buffer"
)

// Options is what an agent is made of. Main builds it from the config and the opened files.
type Options struct {
	ID      string
	Version string
	Zone    string // agent.timezone, for the birth document
	Trusted bool   // agent.clock: trusted
	DataDir string // where the store and the book are
	Store   *buffer.Store
	Book    *book.Book
	Devices []config.Device
	Uplinks []config.Uplink
	Log     *slog.Logger
	Now     func() time.Time

	ReconnectWindow time.Duration // width of the first wait after a lost uplink; 0: 15 s, so that a fleet does not return at once
	Beat            time.Duration // between heartbeats; 0: 30 s

	synced func() bool // nil: asks the kernel
}

// Agent is one running site. Make it with New, then call Run once.
type Agent struct {
	opts      Options
	store     *buffer.Store
	book      *book.Book
	log       *slog.Logger
	clock     *boardClock
	challenge challenges
	began     time.Time     // by the monotonic clock: the board's time may be set meanwhile
	slots     chan struct{} // one for each command of the agent's own under way
	refusals  pace
	reloads   chan reload
	halting   chan struct{} // closed when the agent begins to stop
	ended     chan struct{} // closed when Run has ended

	news chan struct{} // the birth document changed

	mu      sync.Mutex // guards what follows
	open    bool       // commands are taken
	doing   sync.WaitGroup
	devices map[gatepost.DeviceID]*device
	uplinks map[string]*uplink
}

// reload asks Run to match another config; the answer comes on err.
type reload struct {
	devices []config.Device
	uplinks []config.Uplink
	err     chan error
}

// maxCommands is how many commands of a sort may be under way at once, for each device and for the agent itself; more are
// answered "busy". Doors are counted apart, so that they never wait for anything else.
const maxCommands = 8

// New makes an agent; it starts nothing.
func New(o Options) *Agent {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.ReconnectWindow == 0 {
		o.ReconnectWindow = 15 * time.Second
	}
	if o.Beat == 0 {
		o.Beat = 30 * time.Second
	}
	a := &Agent{
		opts: o, store: o.Store, book: o.Book, log: o.Log,
		clock:   newBoardClock(o.Trusted, o.Now),
		slots:   make(chan struct{}, maxCommands),
		reloads: make(chan reload),
		halting: make(chan struct{}),
		ended:   make(chan struct{}),
		news:    make(chan struct{}, 1),
		began:   time.Now(),
		devices: map[gatepost.DeviceID]*device{},
		uplinks: map[string]*uplink{},
	}
	if o.synced != nil {
		a.clock.synced = o.synced
	}
	a.challenge.rotate(time.Now())
	return a
}

// Run works until ctx ends and returns after everything it started has ended, within 5 seconds.
func (a *Agent) Run(ctx context.Context) error {
	defer close(a.ended)
	// The stores outlive the sessions and links, which still have results and places to write.
	storeCtx, stopStores := context.WithCancel(context.WithoutCancel(ctx))
	var stores sync.WaitGroup
	defer stores.Wait()
	defer stopStores()
	failed := make(chan error, 2)
	stores.Go(func() { failed <- a.store.Run(storeCtx) })
	stores.Go(func() { failed <- a.book.Run(storeCtx) })

	if last, err := a.book.LastTime(ctx); err != nil {
		return unlessEnded(ctx, fmt.Errorf("last known time: %w", err))
	} else if last.After(a.now()) {
		a.log.Warn("the board's clock is behind the last known time; going on from that", "was", a.now(), "is", last)
		a.clock.notBelow(last)
	}
	if err := a.settle(ctx); err != nil {
		return unlessEnded(ctx, fmt.Errorf("command ledger: %w", err))
	}
	a.report(ctx)
	if err := a.emit(ctx, gatepost.Event{Name: "agent_started", Detail: map[string]any{"version": a.opts.Version}}); err != nil {
		a.log.Error("event not stored", "err", err)
	}

	// Two lifetimes: terminals stop first, so that what they still told can leave by the links.
	deviceCtx, stopDevices := context.WithCancel(storeCtx)
	linkCtx, stopLinks := context.WithCancel(storeCtx)
	defer stopLinks()
	defer stopDevices()
	if err := a.apply(ctx, deviceCtx, linkCtx, a.opts.Devices, a.opts.Uplinks); err != nil {
		return unlessEnded(ctx, err)
	}
	var pulse sync.WaitGroup
	defer pulse.Wait()
	pulse.Go(func() { a.beat(linkCtx) })
	pulse.Go(func() { a.announce(linkCtx) })

	var err error
	for working := true; working; {
		select {
		case <-ctx.Done():
			working = false
		case err = <-failed:
			err = fmt.Errorf("the store stopped: %w", err)
			working = false
		case r := <-a.reloads:
			r.err <- a.apply(ctx, deviceCtx, linkCtx, r.devices, r.uplinks)
		}
	}
	a.log.Info("stopping")
	a.mu.Lock()
	a.open = false
	a.mu.Unlock()
	close(a.halting)
	stopDevices()
	for _, d := range a.deviceList() {
		<-d.done
	}
	a.doing.Wait() // without sessions, commands end at once
	last, cancel := context.WithTimeout(storeCtx, lastWords)
	defer cancel()
	for _, u := range a.uplinkList() {
		u.drain(last)
	}
	stopLinks()
	for _, u := range a.uplinkList() {
		<-u.done
	}
	a.rememberTime(storeCtx)
	return err
}

func (a *Agent) now() time.Time { return a.clock.now() }

func (a *Agent) uptime() time.Duration { return time.Since(a.began) }

// unlessEnded is err, or nil where it came of being told to stop.
func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// lastWords is how long a stopping agent tries to send what is still waiting.
const lastWords = time.Second

// enter counts a command in, unless the agent is still starting or already stopping; leave counts it out.
func (a *Agent) enter() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.open {
		return false
	}
	a.doing.Add(1)
	return true
}

func (a *Agent) leave() { a.doing.Done() }

// Reload makes the running agent match devices and uplinks, touching only those whose settings changed.
func (a *Agent) Reload(ctx context.Context, devices []config.Device, uplinks []config.Uplink) error {
	r := reload{devices, uplinks, make(chan error, 1)}
	select {
	case a.reloads <- r:
		return <-r.err
	case <-a.ended:
		return errors.New("the agent has stopped")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// apply starts what is new, stops what is gone and restarts what changed.
func (a *Agent) apply(ctx, deviceCtx, linkCtx context.Context, devices []config.Device, uplinks []config.Uplink) error {
	places := make([]buffer.Uplink, len(uplinks))
	for i, u := range uplinks {
		places[i] = buffer.Uplink{ID: u.ID, Required: u.Required, FromOldest: u.FromOldest}
	}
	if err := a.store.SetUplinks(ctx, places); err != nil {
		return fmt.Errorf("uplink places: %w", err)
	}

	a.mu.Lock()
	var stopped []*device
	var cut []*uplink
	wantDevices := map[gatepost.DeviceID]config.Device{}
	for _, c := range devices {
		wantDevices[c.ID] = c
	}
	for id, d := range a.devices {
		if c, ok := wantDevices[id]; !ok || c.Hash != d.conf.Hash {
			stopped = append(stopped, d)
			delete(a.devices, id)
		}
	}
	wantUplinks := map[string]config.Uplink{}
	for _, c := range uplinks {
		wantUplinks[c.ID] = c
	}
	for id, u := range a.uplinks {
		if c, ok := wantUplinks[id]; !ok || c.Hash != u.conf.Hash {
			cut = append(cut, u)
			delete(a.uplinks, id)
		}
	}
	a.mu.Unlock()

	for _, d := range stopped {
		d.stop()
	}
	for _, u := range cut {
		u.stop()
	}
	for _, d := range stopped {
		<-d.done
	}
	for _, u := range cut {
		<-u.done
	}

	a.mu.Lock()
	for _, c := range devices {
		if a.devices[c.ID] == nil {
			a.devices[c.ID] = a.startDevice(deviceCtx, c)
		}
	}
	a.open = true // before the first link, which may bring commands at once
	for _, c := range uplinks {
		if a.uplinks[c.ID] == nil {
			a.uplinks[c.ID] = a.startUplink(linkCtx, c)
		}
	}
	a.mu.Unlock()
	a.changed()
	return nil
}

func (a *Agent) device(id gatepost.DeviceID) *device {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.devices[id]
}

// deviceList is the devices by id.
func (a *Agent) deviceList() []*device {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.devices), func(x, y *device) int { return cmp.Compare(x.conf.ID, y.conf.ID) })
}

func (a *Agent) uplinkList() []*uplink {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.uplinks), func(x, y *uplink) int { return cmp.Compare(x.conf.ID, y.conf.ID) })
}

func (a *Agent) linked() []gatepost.Link {
	var links []gatepost.Link
	for _, u := range a.uplinkList() {
		if l := u.current(); l != nil {
			links = append(links, l)
		}
	}
	return links
}
