package zk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
	"gatepost/drivers/zk/zksim"
)

// terminal is a simulated terminal on a real socket.
type terminal struct {
	*zksim.Terminal
	addr string
}

func simulate(t *testing.T, o zksim.Options) terminal {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	term := terminal{zksim.New(o), l.Addr().String()}
	served := make(chan error, 1)
	go func() { served <- term.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-served
	})
	return term
}

func (term terminal) fault(t *testing.T, f zksim.Fault) {
	t.Helper()
	if err := term.Fault(f); err != nil {
		t.Fatal(err)
	}
}

func (term terminal) punch(t *testing.T, user string) {
	t.Helper()
	if err := term.Punch(zksim.Punch{User: user}); err != nil {
		t.Fatal(err)
	}
}

// memory is a device's State in memory.
type memory struct {
	mu sync.Mutex
	m  map[string]string
}

func (m *memory) Get(_ context.Context, key string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.m[key], nil
}

func (m *memory) Put(_ context.Context, key, value string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = map[string]string{}
	}
	m.m[key] = value
	return nil
}

// newTestDevice makes a device of settings; edit changes them.
func newTestDevice(t *testing.T, addr string, edit func(*options)) *device {
	t.Helper()
	d, err := newDevice(func(into any) error {
		o := into.(*options)
		o.Address, o.Timeout = addr, 5*time.Second
		if edit != nil {
			edit(o)
		}
		return nil
	}, gatepost.Env{ID: "door", Log: slog.New(slog.NewTextHandler(t.Output(), nil)), State: &memory{}})
	if err != nil {
		t.Fatal(err)
	}
	return d.(*device)
}

func openSession(t *testing.T, d *device) *session {
	t.Helper()
	s, err := d.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s.(*session)
}

// store plays the agent's buffer: it refuses doubles by key.
type store struct {
	mu    sync.Mutex
	keys  map[string]bool
	rs    []gatepost.Record
	twice int // refused
	fail  error
}

func (b *store) emit(_ context.Context, rs ...gatepost.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return b.fail
	}
	if b.keys == nil {
		b.keys = map[string]bool{}
	}
	for _, r := range rs {
		if r.Key != "" {
			if b.keys[r.Key] {
				b.twice++
				continue
			}
			b.keys[r.Key] = true
		}
		b.rs = append(b.rs, r)
	}
	return nil
}

func (b *store) punches() (users []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.rs {
		if p, ok := r.Data.(gatepost.Punch); ok {
			users = append(users, p.User)
		}
	}
	return users
}

func (b *store) events() (names []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.rs {
		if e, ok := r.Data.(gatepost.Event); ok {
			names = append(names, e.Name)
		}
	}
	return names
}

// waitFor waits until ok holds.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

func TestInfo(t *testing.T) {
	term := simulate(t, zksim.Options{Serial: "GP42", Users: 3, Records: 5, Key: 123456})
	s := openSession(t, newTestDevice(t, term.addr, func(o *options) { o.Password = gatepost.NewSecret("123456") }))
	info := s.Info()
	if info.Serial != "GP42" || info.Counts["users"] != 3 || info.Counts["records"] != 5 || info.Platform == "" || info.Firmware == "" || info.Doors != 1 {
		t.Errorf("info is %+v", info)
	}
}

func TestWrongKeyIsMisconfigured(t *testing.T) {
	term := simulate(t, zksim.Options{Key: 7})
	for _, tt := range []struct{ key, want string }{
		{"8", "login at " + term.addr + ": wrong comm key"},
		{"", "login at " + term.addr + ": the terminal wants a comm key and none is set"},
	} {
		_, err := newTestDevice(t, term.addr, func(o *options) { o.Password = gatepost.NewSecret(tt.key) }).Open(t.Context())
		if err == nil || err.Error() != tt.want {
			t.Errorf("key %q: error %v, want %v", tt.key, err, tt.want)
		}
		if gatepost.ClassOf(err) != gatepost.Misconfigured || !strings.Contains(gatepost.HintOf(err), "Menu > Comm.") {
			t.Errorf("key %q: class %v, hint %q", tt.key, gatepost.ClassOf(err), gatepost.HintOf(err))
		}
	}
}

// TestLogIsRead reads logs of every record size through every bulk shape, whole and in small frames.
func TestLogIsRead(t *testing.T) {
	for _, size := range []int{16, 40, 49} {
		for _, bulk := range []string{"buffered", "stream", "direct"} {
			for _, frame := range []int{1008, 65536} {
				for _, records := range []int{0, 1, 7, 5000} {
					t.Run(fmt.Sprintf("%d/%s/%d/%d", size, bulk, frame, records), func(t *testing.T) {
						t.Parallel()
						term := simulate(t, zksim.Options{Users: 9, Records: records, RecordSize: size, Bulk: bulk, FrameMax: frame})
						s := openSession(t, newTestDevice(t, term.addr, nil))
						var b store
						read, err := s.ReadLog(t.Context(), "", true, b.emit)
						if err != nil {
							t.Fatal(err)
						}
						if !read.Full && records > 0 || read.Emitted != records || b.twice != 0 {
							t.Errorf("read is %+v, %d refused", read, b.twice)
						}
						compareLog(t, term, b.rs)
					})
				}
			}
		}
	}
}

// compareLog checks rs against the terminal's own log.
func compareLog(t *testing.T, term terminal, rs []gatepost.Record) {
	t.Helper()
	want := term.Log(0, term.State().Records)
	if len(rs) != len(want) {
		t.Fatalf("%d records, want %d", len(rs), len(want))
	}
	for i, w := range want {
		p := rs[i].Data.(gatepost.Punch)
		raw := p.Raw.(*Raw)
		if p.User != w.User || rs[i].Wall != w.Time || raw.Verify != w.Verify || raw.State != w.State {
			t.Fatalf("record %d is %+v %+v, want %+v", i, rs[i], raw, w)
		}
	}
}

func TestSplitGluedAndMixedWithEvents(t *testing.T) {
	for _, f := range []zksim.Fault{{Kind: "split", Bytes: 7}, {Kind: "split", Bytes: 1000}, {Kind: "glue", Count: 3}, {Kind: "foreign"}} {
		t.Run(f.Kind+strconv.Itoa(f.Bytes), func(t *testing.T) {
			term := simulate(t, zksim.Options{Users: 9, Records: 3000, FrameMax: 1008})
			s := openSession(t, newTestDevice(t, term.addr, nil))
			term.fault(t, f)
			var b store
			if _, err := s.ReadLog(t.Context(), "", true, b.emit); err != nil {
				t.Fatal(err)
			}
			compareLog(t, term, b.rs)
		})
	}
}

func TestNothingNewCostsOneRoundTrip(t *testing.T) {
	term := simulate(t, zksim.Options{Users: 9, Records: 500})
	s := openSession(t, newTestDevice(t, term.addr, nil))
	var b store
	read, err := s.ReadLog(t.Context(), "", true, b.emit)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Time(t.Context()); err != nil { // FREE_DATA has been counted by now
		t.Fatal(err)
	}
	before := term.State().Requests
	again, err := s.ReadLog(t.Context(), read.Next, false, b.emit)
	if err != nil || again.Next != read.Next || again.Emitted != 0 {
		t.Errorf("second read is %+v, %v", again, err)
	}
	if n := term.State().Requests - before; n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

func TestOnlyTheTailIsRead(t *testing.T) {
	for _, size := range []int{16, 40, 49} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			term := simulate(t, zksim.Options{Users: 9, Records: 5000, RecordSize: size})
			s := openSession(t, newTestDevice(t, term.addr, nil))
			var b store
			read, err := s.ReadLog(t.Context(), "", true, b.emit)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				term.punch(t, strconv.Itoa(i+1))
			}
			b.rs = nil
			read, err = s.ReadLog(t.Context(), read.Next, false, b.emit)
			if err != nil || read.Emitted != 3 || read.Full || b.twice != 0 {
				t.Errorf("read is %+v, %v, %d refused", read, err, b.twice)
			}
			if got, want := b.punches(), []string{"1", "2", "3"}; !slices.Equal(got, want) {
				t.Errorf("users %v, want %v", got, want)
			}
		})
	}
}

// TestTerminalWithoutTailIsRemembered sees that the attempt is made once.
func TestTerminalWithoutTailIsRemembered(t *testing.T) {
	term := simulate(t, zksim.Options{Users: 9, Records: 5000, NoTail: true})
	d := newTestDevice(t, term.addr, nil)
	s := openSession(t, d)
	var b store
	next := ""
	for i := range 3 {
		read, err := s.ReadLog(t.Context(), next, false, b.emit)
		if err != nil || !read.Full {
			t.Fatalf("read %d is %+v, %v", i, read, err)
		}
		next = read.Next
		term.punch(t, "1")
	}
	if v, _ := d.env.State.Get(t.Context(), keyTail); v != "no" {
		t.Errorf("remembered %q, want no", v)
	}
	if n := len(b.punches()); n != 5002 {
		t.Errorf("%d punches, want 5002", n)
	}
	if n := b.events(); len(n) != 0 {
		t.Errorf("events %v, want none", n)
	}
}

func TestChangedLogIsTold(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault zksim.Fault
		extra int // punches after it
		cap   int
		want  []string
	}{
		{"grown", zksim.Fault{}, 3, 0, nil},
		{"cleared", zksim.Fault{Kind: "clear"}, 0, 0, []string{"log_cleared"}},
		{"cleared and used", zksim.Fault{Kind: "clear"}, 5, 0, []string{"log_cleared"}},
		{"rewritten", zksim.Fault{Kind: "rewrite"}, 2, 0, []string{"log_rewritten"}},
		{"wrapped", zksim.Fault{Kind: "wrap", Count: 4}, 0, 1000, []string{"log_wrapped"}},
		{"wrapped far", zksim.Fault{Kind: "wrap", Count: 700}, 0, 1000, []string{"log_wrapped"}},
	} {
		for _, noTail := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", tt.name, noTail), func(t *testing.T) {
				term := simulate(t, zksim.Options{Users: 9, Records: 1000, Capacity: tt.cap, NoTail: noTail})
				d := newTestDevice(t, term.addr, nil)
				s := openSession(t, d)
				var b store
				read, err := s.ReadLog(t.Context(), "", true, b.emit)
				if err != nil {
					t.Fatal(err)
				}
				if tt.fault.Kind != "" {
					term.fault(t, tt.fault)
				}
				for range tt.extra {
					term.punch(t, "1")
				}
				for i := range 2 {
					if read, err = s.ReadLog(t.Context(), read.Next, i == 1, b.emit); err != nil {
						t.Fatal(err)
					}
				}
				if got := b.events(); !slices.Equal(got, tt.want) {
					t.Errorf("events %v, want %v", got, tt.want)
				}
				have := map[string]int{}
				for _, r := range b.rs {
					if p, ok := r.Data.(gatepost.Punch); ok {
						have[fmt.Sprint(p.User, r.Wall)]++
					}
				}
				for _, e := range term.Log(0, term.State().Records) {
					have[fmt.Sprint(e.User, e.Time)]--
				}
				for k, n := range have {
					if n < 0 {
						t.Errorf("%s missing %d times", k, -n)
					}
				}
			})
		}
	}
}

func TestImpossibleDatesAreKept(t *testing.T) {
	term := simulate(t, zksim.Options{Users: 2, Records: 5})
	term.fault(t, zksim.Fault{Kind: "impossible", Count: 2})
	s := openSession(t, newTestDevice(t, term.addr, nil))
	var b store
	if read, err := s.ReadLog(t.Context(), "", true, b.emit); err != nil || read.Emitted != 7 {
		t.Fatalf("read is %+v, %v", read, err)
	}
	last := b.rs[6]
	if _, mark := last.Wall.In(time.UTC); mark != gatepost.MarkInvalid {
		t.Errorf("wall time %q is not marked", last.Wall)
	}
	if raw := last.Data.(gatepost.Punch).Raw.(*Raw); raw.Odd != "time" || len(raw.Hex) != 80 {
		t.Errorf("raw is %+v", raw)
	}
}

func TestUsers(t *testing.T) {
	for _, size := range []int{28, 72} {
		for _, n := range []int{0, 1, 7, 18, 2000} {
			t.Run(fmt.Sprintf("%d/%d", size, n), func(t *testing.T) {
				term := simulate(t, zksim.Options{Users: n, UserSize: size, OddIDs: size == 72})
				s := openSession(t, newTestDevice(t, term.addr, nil))
				us, err := s.Users(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				want := term.Users()
				if len(us) != len(want) {
					t.Fatalf("%d users, want %d", len(us), len(want))
				}
				for i, w := range want {
					if us[i].ID != w.User || us[i].Name != w.Name {
						t.Errorf("user %d is %+v, want %+v", i, us[i], w)
					}
				}
			})
		}
	}
}

// listen runs Listen until the test ends or stop is called.
func listen(t *testing.T, term terminal, s *session, emit gatepost.Emit) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	before := term.State().Requests
	go func() { result <- s.Listen(ctx, emit) }()
	waitFor(t, "registered for events", func() bool { return term.State().Requests >= before+3 })
	if _, err := s.Time(t.Context()); err != nil { // the terminal has answered all before this
		t.Fatal(err)
	}
	stop = sync.OnceValue(func() error {
		cancel()
		return <-result
	})
	t.Cleanup(func() { stop() })
	return stop
}

// TestLiveAndLogAreOneRecord punches live, in every event form, and reads the log after it.
func TestLiveAndLogAreOneRecord(t *testing.T) {
	for _, o := range []zksim.Options{
		{EventSize: 10}, {EventSize: 12}, {EventSize: 14}, {EventSize: 32}, {EventSize: 36}, {EventSize: 37}, {EventSize: 52},
		{EventSize: 10, OddIDs: true}, {EventSize: 14, OddIDs: true}, {EventSize: 32, OddIDs: true},
		{RecordSize: 16}, {RecordSize: 16, EventSize: 32}, {RecordSize: 16, EventSize: 10}, {RecordSize: 49},
		{UserSize: 28, EventSize: 12}, {UserSize: 28, RecordSize: 16, EventSize: 10}, {VerifyFirst: true},
	} {
		t.Run(fmt.Sprintf("record%d user%d event%d odd%v", o.RecordSize, o.UserSize, o.EventSize, o.OddIDs), func(t *testing.T) {
			o.Users, o.Records = 20, 10
			term := simulate(t, o)
			s := openSession(t, newTestDevice(t, term.addr, nil))
			var b store
			read, err := s.ReadLog(t.Context(), "", true, b.emit)
			if err != nil {
				t.Fatal(err)
			}
			listen(t, term, s, b.emit)
			for _, u := range term.Users() {
				term.punch(t, u.User)
			}
			waitFor(t, "all stored", func() bool { return len(b.punches()) == 30 })
			waitFor(t, "all confirmed", func() bool { return term.State().Unacked == 0 })
			if read, err = s.ReadLog(t.Context(), read.Next, false, b.emit); err != nil {
				t.Fatal(err)
			}
			if n := len(b.punches()); n != 30 || b.twice != 20 {
				t.Errorf("%d punches, %d refused; want 30 and 20", n, b.twice)
			}
		})
	}
}

// TestUnstoredEventIsNotConfirmed fails the store: the terminal must keep the event as unconfirmed.
func TestUnstoredEventIsNotConfirmed(t *testing.T) {
	term := simulate(t, zksim.Options{Users: 3})
	s := openSession(t, newTestDevice(t, term.addr, nil))
	b := store{fail: errors.New("disk full")}
	emitted := make(chan struct{})
	stop := listen(t, term, s, func(ctx context.Context, rs ...gatepost.Record) error {
		defer close(emitted)
		if term.State().Unacked == 0 {
			t.Error("the event is confirmed before it is stored")
		}
		return b.emit(ctx, rs...)
	})
	term.punch(t, "2")
	<-emitted
	if err := stop(); err == nil || err.Error() != "disk full" {
		t.Errorf("listen ended with %v", err)
	}
}

func TestUnlock(t *testing.T) {
	term := simulate(t, zksim.Options{})
	s := openSession(t, newTestDevice(t, term.addr, nil))
	if err := s.Unlock(t.Context(), 1, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	doors := term.State().Doors
	if len(doors) != 1 || doors[0].Seconds != 5 {
		t.Errorf("doors %+v, want one of 5 s", doors)
	}
	for _, tt := range []struct {
		door int
		hold time.Duration
		want string
	}{
		{2, time.Second, "unlock door 2: this terminal has 1 door"},
		{0, time.Second, "unlock door 0: this terminal has 1 door"},
		{1, 30 * time.Second, "unlock door 1 for 30s: the terminal takes up to 25.4s"},
		{1, 0, "unlock door 1 for 0s: the terminal takes up to 25.4s"},
	} {
		err := s.Unlock(t.Context(), tt.door, tt.hold)
		if err == nil || err.Error() != tt.want || gatepost.ClassOf(err) != gatepost.Permanent {
			t.Errorf("error %v, want %v", err, tt.want)
		}
	}
	term.fault(t, zksim.Fault{Kind: "refuse", Code: zkproto.AckError, Command: zkproto.CmdUnlock})
	if err := s.Unlock(t.Context(), 1, time.Second); !errors.Is(err, gatepost.ErrRefused) || err.Error() != "unlock door 1: the terminal answered 2001 (error)" {
		t.Errorf("refused: %v", err)
	}
	if n := len(term.State().Doors); n != 1 {
		t.Errorf("%d openings, want 1", n)
	}
}

func TestUnlockWithoutAnswerIsUnknown(t *testing.T) {
	term := simulate(t, zksim.Options{})
	s := openSession(t, newTestDevice(t, term.addr, func(o *options) { o.Timeout = 200 * time.Millisecond }))
	term.fault(t, zksim.Fault{Kind: "silent"})
	err := s.Unlock(t.Context(), 1, time.Second)
	if !errors.Is(err, gatepost.ErrOutcomeUnknown) {
		t.Errorf("error %v, want unknown", err)
	}
	if want := "no answer: it may or may not have happened: unlock door 1: no answer in 200ms"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if _, err := s.Time(t.Context()); err == nil {
		t.Error("the link lives on, and with it perhaps the unlock")
	}
	if err := s.Unlock(t.Context(), 1, time.Second); err == nil || err.Error() != "unlock door 1: the link was ended after an unlock without an answer" || errors.Is(err, gatepost.ErrOutcomeUnknown) {
		t.Errorf("on a dead link: %v", err)
	}
}

// TestUnlockOvertakesBulk reads a log at 100 KB/s and unlocks meanwhile.
func TestUnlockOvertakesBulk(t *testing.T) {
	term := simulate(t, zksim.Options{Users: 9, Records: 10_000})
	s := openSession(t, newTestDevice(t, term.addr, nil))
	term.fault(t, zksim.Fault{Kind: "throttle", Bytes: 100_000})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var b store
	result := make(chan error, 1)
	go func() {
		_, err := s.ReadLog(ctx, "", true, b.emit)
		result <- err
	}()
	before := s.l.heard.Load()
	waitFor(t, "the read under way", func() bool { return s.l.heard.Load() > before+int64(300*time.Millisecond) })
	var took []time.Duration
	for range 8 {
		start := time.Now()
		if err := s.Unlock(t.Context(), 1, time.Second); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	select {
	case err := <-result:
		t.Fatalf("the read ended already: %v", err)
	default:
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("read ended with %v", err)
	}
	slices.Sort(took)
	t.Log("unlocks took", took)
	if took[len(took)-1] > 400*time.Millisecond || took[len(took)/2] > 200*time.Millisecond {
		t.Errorf("unlocks took %v", took)
	}
}

func TestClock(t *testing.T) {
	term := simulate(t, zksim.Options{})
	s := openSession(t, newTestDevice(t, term.addr, nil))
	if err := s.SetTime(t.Context(), "2031-02-03T04:05:06"); err != nil {
		t.Fatal(err)
	}
	w, err := s.Time(t.Context())
	if err != nil || !strings.HasPrefix(string(w), "2031-02-03T04:05:") {
		t.Errorf("time %v, %v", w, err)
	}
	if err := s.SetTime(t.Context(), "1999-02-03T04:05:06"); err == nil {
		t.Error("1999 was taken")
	}
}

// TestManyInOneSecond has the same people punch again and again within one second, between polls.
func TestManyInOneSecond(t *testing.T) {
	for _, capacity := range []int{0, 300} {
		term := simulate(t, zksim.Options{Users: 3, Records: 100, Capacity: capacity})
		s := openSession(t, newTestDevice(t, term.addr, nil))
		var b store
		next, punched := "", 100
		for round := range 6 {
			read, err := s.ReadLog(t.Context(), next, false, b.emit)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(b.punches()); got != punched {
				t.Errorf("capacity %d, round %d: %d punches, want %d", capacity, round, got, punched)
			}
			next = read.Next
			for i := range 70 {
				if err := term.Punch(zksim.Punch{User: strconv.Itoa(i%3 + 1), Time: "2026-03-01T08:00:00"}); err != nil {
					t.Fatal(err)
				}
				punched++
			}
			if capacity != 0 && punched > capacity {
				break // the oldest are gone; equal ones among them are renumbered
			}
		}
	}
}

// BenchmarkRead100k reads a log of 100 000 records over loopback, decoding included, storing not.
func BenchmarkRead100k(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go zksim.New(zksim.Options{Users: 500, Records: 100_000}).Serve(ctx, l)
	d, err := newDevice(func(into any) error {
		into.(*options).Address = l.Addr().String()
		return nil
	}, gatepost.Env{})
	if err != nil {
		b.Fatal(err)
	}
	s, err := d.Open(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.ReportAllocs()
	for b.Loop() {
		read, err := s.(gatepost.LogSource).ReadLog(b.Context(), "", true, func(context.Context, ...gatepost.Record) error { return nil })
		if err != nil || read.Emitted != 100_000 {
			b.Fatal(read.Emitted, err)
		}
	}
}
