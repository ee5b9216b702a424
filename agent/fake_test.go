package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"gatepost"
	"gatepost/agent/book"
	"gatepost/agent/config"
	"gatepost/buffer"
)

// The fakes here stand in for terminals and far systems in tests of policy: when, how often, in which order. What is true
// of wires is tested with real sockets elsewhere.

// fakeDevice opens the sessions that open makes.
type fakeDevice struct {
	mu    sync.Mutex
	opens int
	open  func(n int) (gatepost.Session, error)
}

func (d *fakeDevice) Open(context.Context) (gatepost.Session, error) {
	d.mu.Lock()
	d.opens++
	n := d.opens
	d.mu.Unlock()
	return d.open(n)
}

func (d *fakeDevice) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.opens
}

// fakeSession is a terminal with a log, live punches, doors and a clock.
type fakeSession struct {
	info gatepost.Info
	now  func() time.Time

	mu       sync.Mutex
	log      []gatepost.Record
	doors    []int
	reads    int
	full     int
	skew     time.Duration
	set      []gatepost.Wall
	unlock   func(ctx context.Context) error
	readGate chan struct{} // a read waits for it
	live     chan gatepost.Record
	lost     chan struct{}
	lose     sync.Once
}

func newFakeSession() *fakeSession {
	return &fakeSession{info: gatepost.Info{Serial: "SN1", Doors: 1}, now: time.Now,
		live: make(chan gatepost.Record), lost: make(chan struct{})}
}

func (s *fakeSession) Info() gatepost.Info { return s.info }
func (s *fakeSession) Close() error        { s.cut(); return nil }
func (s *fakeSession) cut()                { s.lose.Do(func() { close(s.lost) }) }

func (s *fakeSession) Listen(ctx context.Context, emit gatepost.Emit) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.lost:
			return gatepost.ErrHungUp
		case r := <-s.live:
			if err := emit(ctx, r); err != nil {
				return err
			}
		}
	}
}

func (s *fakeSession) ReadLog(ctx context.Context, after string, full bool, emit gatepost.Emit) (gatepost.LogRead, error) {
	s.mu.Lock()
	s.reads++
	if full {
		s.full++
	}
	log, gate := slices.Clone(s.log), s.readGate
	s.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return gatepost.LogRead{}, context.Cause(ctx)
		}
	}
	from := 0
	if after != "" && !full {
		from, _ = strconv.Atoi(after)
	}
	if err := emit(ctx, log[from:]...); err != nil {
		return gatepost.LogRead{}, err
	}
	return gatepost.LogRead{Next: strconv.Itoa(len(log)), Full: from == 0, Emitted: len(log) - from}, nil
}

func (s *fakeSession) Unlock(ctx context.Context, door int, _ time.Duration) error {
	s.mu.Lock()
	act := s.unlock
	s.mu.Unlock()
	if act != nil {
		if err := act(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doors = append(s.doors, door)
	return nil
}

func (s *fakeSession) opened() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.doors)
}

func (s *fakeSession) Time(context.Context) (gatepost.Wall, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return gatepost.WallOf(s.now().Add(s.skew).UTC()), nil
}

func (s *fakeSession) SetTime(_ context.Context, w gatepost.Wall) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set = append(s.set, w)
	s.skew = 0
	return nil
}

var (
	_ gatepost.LiveSource = (*fakeSession)(nil)
	_ gatepost.LogSource  = (*fakeSession)(nil)
	_ gatepost.Unlocker   = (*fakeSession)(nil)
	_ gatepost.Clock      = (*fakeSession)(nil)
)

func punch(user, wall string) gatepost.Record {
	return gatepost.Record{Key: user + "|" + wall, Wall: gatepost.Wall(wall),
		Data: gatepost.Punch{User: user, Method: gatepost.MethodFinger, Direction: gatepost.DirectionIn}}
}

// fakeUplink makes fakeLinks.
type fakeUplink struct {
	mu    sync.Mutex
	dials int
	dial  func(n int) error                                    // nil: connects
	send  func(rs []gatepost.Stored, replay bool) (int, error) // nil: confirms all
	links []*fakeLink
	got   []sent
	take  func(gatepost.Delivery)
	hello gatepost.Hello
}

type sent struct {
	gatepost.Stored
	replay bool
}

type fakeLink struct {
	u    *fakeUplink
	done chan struct{}
	once sync.Once
}

func (u *fakeUplink) Dial(_ context.Context, hello gatepost.Hello, take func(gatepost.Delivery)) (gatepost.Link, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dials++
	if u.dial != nil {
		if err := u.dial(u.dials); err != nil {
			return nil, err
		}
	}
	u.take, u.hello = take, hello
	l := &fakeLink{u: u, done: make(chan struct{})}
	u.links = append(u.links, l)
	return l, nil
}

func (l *fakeLink) Send(ctx context.Context, rs []gatepost.Stored, replay bool) (int, error) {
	select {
	case <-l.done:
		return 0, errors.New("the link is cut")
	default:
	}
	n, err := len(rs), error(nil)
	l.u.mu.Lock()
	act := l.u.send
	l.u.mu.Unlock()
	if act != nil {
		n, err = act(rs, replay)
	}
	l.u.mu.Lock()
	defer l.u.mu.Unlock()
	for _, r := range rs[:n] {
		l.u.got = append(l.u.got, sent{r, replay})
	}
	return n, err
}

func (l *fakeLink) Announce(context.Context, gatepost.Birth) error { return nil }
func (l *fakeLink) Beat(context.Context, gatepost.Heartbeat) error { return nil }
func (l *fakeLink) Done() <-chan struct{}                          { return l.done }
func (l *fakeLink) Err() error {
	select {
	case <-l.done:
		return io.EOF
	default:
		return nil
	}
}
func (l *fakeLink) Close(context.Context) error { l.once.Do(func() { close(l.done) }); return nil }

// received is what the far side has, of one kind.
func (u *fakeUplink) received(k gatepost.Kind) []sent {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []sent
	for _, s := range u.got {
		if s.Kind == k {
			out = append(out, s)
		}
	}
	return out
}

func (u *fakeUplink) link() *fakeLink {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.links) == 0 {
		return nil
	}
	return u.links[len(u.links)-1]
}

// site is an agent on a real store and book, with fake surroundings.
type site struct {
	*Agent
	dir   string
	up    *fakeUplink
	dev   *fakeDevice
	stop  context.CancelFunc
	ended chan struct{}
	err   error
}

// newSite opens the files in dir and makes an agent with one device "gate" and one uplink "cloud".
func newSite(t *testing.T, dir string, dev *fakeDevice, change func(*Options)) *site {
	t.Helper()
	log := testLog(t)
	ctx := t.Context()
	b, err := book.Open(ctx, filepath.Join(dir, "book.db"), log)
	if err != nil {
		t.Fatal(err)
	}
	st, err := buffer.Open(ctx, filepath.Join(dir, "records.db"), buffer.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: dir, up: &fakeUplink{}, dev: dev, ended: make(chan struct{})}
	o := Options{ID: "site-1", Version: "test", Zone: "UTC", Trusted: true, synced: func() bool { return false }, DataDir: dir, Store: st, Book: b, Log: log,
		Devices: []config.Device{deviceConf("gate", dev)},
		Uplinks: []config.Uplink{{ID: "cloud", Driver: "fake", Required: true, FromOldest: true, Hash: "1", Uplink: s.up}},
	}
	if change != nil {
		change(&o)
	}
	s.Agent = New(o)
	ctx, s.stop = context.WithCancel(ctx)
	go func() {
		defer close(s.ended)
		s.err = s.Agent.Run(ctx)
		if err := st.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Errorf("close book: %v", err)
		}
	}()
	t.Cleanup(func() { s.halt(t) })
	return s
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func deviceConf(id gatepost.DeviceID, dev gatepost.Device) config.Device {
	return config.Device{ID: id, Driver: "fake", Enabled: true, Zone: time.UTC, ZoneName: "UTC", FullRead: time.Hour, Hash: "1", Device: dev}
}

// halt stops the agent and waits for its end.
func (s *site) halt(t *testing.T) {
	s.stop()
	<-s.ended
	if s.err != nil {
		t.Errorf("run: %v", s.err)
	}
}

// until waits for a condition, at most 30 seconds.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

func (s *site) state(id gatepost.DeviceID) gatepost.State {
	for _, d := range s.Agent.Devices() {
		if d.ID == id {
			return d.State
		}
	}
	return ""
}
