// Package drivertest judges drivers: what the agent relies on, held against a driver and a simulated terminal on a real
// socket. A driver's own tests call Run; what a session does not offer is not asked for.
package drivertest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"gatepost"
)

// Rig is one simulated terminal and the device that a driver made for it. Functions that are nil name what the terminal
// cannot do; cases that need them are left out.
type Rig struct {
	Device gatepost.Device
	// Patience is by when the driver, as configured, gives up a terminal that has fallen silent.
	Patience time.Duration

	Punch       func(n int) // people show themselves n times, no one twice in a second
	Held        func() int  // punches in the terminal's log
	Unconfirmed func() int  // live punches told and not confirmed
	Opened      func() int  // times that a door has been opened

	Cut     func() // the link breaks
	Stall   func() // the terminal takes what is sent and says nothing more; the link stays
	Garbage func() // the terminal's answers are garbled
	Heal    func() // ends Stall and Garbage
}

// soon is how long anything may take that does not wait for a silent terminal.
const soon = 10 * time.Second

// prompt is how soon a cancelled call returns.
const prompt = 2 * time.Second

// Run judges a driver. newRig makes a fresh terminal for each case.
func Run(t *testing.T, newRig func(t *testing.T) Rig) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, r Rig)
	}{
		{"OpenAndClose", openAndClose},
		{"LogIsReadOnce", logIsReadOnce},
		{"ReconnectWithoutDoubles", reconnect},
		{"LiveAndLogAreOne", liveAndLog},
		{"ConfirmedIsStored", confirmedIsStored},
		{"FailedReadKeepsPlace", failedRead},
		{"CancelDuringEachCall", cancelEach},
		{"CloseDuringEachCall", closeEach},
		{"HalfOpenLink", halfOpen},
		{"Garbage", garbage},
		{"Flood", flood},
		{"UnlockOnce", unlockOnce},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t, newRig(t))
		})
	}
}

// store plays the agent's buffer: it refuses doubles by kind and key.
type store struct {
	mu     sync.Mutex
	seen   map[string]bool
	stored int // punches
	double int
	fail   error
	failed int // emits
}

func (b *store) emit(ctx context.Context, rs ...gatepost.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		b.failed++
		return b.fail
	}
	if b.seen == nil {
		b.seen = map[string]bool{}
	}
	for _, r := range rs {
		if r.Data.Kind() != gatepost.KindPunch {
			continue
		}
		if r.Key != "" && b.seen[r.Key] {
			b.double++
			continue
		}
		b.seen[r.Key] = true
		b.stored++
	}
	return nil
}

func (b *store) counts() (stored, double int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stored, b.double
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
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

// open opens a session; a terminal may need a moment to let go of the last one.
func open(t *testing.T, r Rig) gatepost.Session {
	t.Helper()
	var s gatepost.Session
	waitFor(t, "open", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		var err error
		if s, err = r.Device.Open(ctx); err != nil {
			t.Log(err)
		}
		return err == nil
	})
	t.Cleanup(func() { s.Close() })
	return s
}

func openAndClose(t *testing.T, r Rig) {
	first := open(t, r)
	if first.Info().Serial == "" {
		t.Error("the terminal has no serial number")
	}
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Error(err)
	}
	again := open(t, r)
	if a, b := first.Info().Serial, again.Info().Serial; a != b {
		t.Errorf("serial number was %s and is %s", a, b)
	}
}

// readLog reads and reports the log, if there is one.
func readLog(t *testing.T, s gatepost.Session, after string, full bool, b *store) gatepost.LogRead {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	read, err := s.(gatepost.LogSource).ReadLog(ctx, after, full, b.emit)
	if err != nil {
		t.Fatal(err)
	}
	return read
}

func hasLog(s gatepost.Session) bool  { _, ok := s.(gatepost.LogSource); return ok }
func hasLive(s gatepost.Session) bool { _, ok := s.(gatepost.LiveSource); return ok }

func logIsReadOnce(t *testing.T, r Rig) {
	s := open(t, r)
	if !hasLog(s) {
		return
	}
	r.Punch(50)
	var b store
	read := readLog(t, s, "", true, &b)
	if stored, _ := b.counts(); stored != r.Held() {
		t.Errorf("%d punches, the terminal holds %d", stored, r.Held())
	}
	again := readLog(t, s, read.Next, false, &b)
	if again.Emitted != 0 {
		t.Errorf("%d records where nothing is new", again.Emitted)
	}
	r.Punch(1)
	readLog(t, s, again.Next, false, &b)
	if stored, _ := b.counts(); stored != r.Held() {
		t.Errorf("%d punches, the terminal holds %d", stored, r.Held())
	}
	readLog(t, s, "nonsense", false, &b) // a cursor of another version
	if stored, _ := b.counts(); stored != r.Held() {
		t.Errorf("doubles: %d punches, the terminal holds %d", stored, r.Held())
	}
}

func reconnect(t *testing.T, r Rig) {
	s := open(t, r)
	if !hasLog(s) || r.Cut == nil {
		return
	}
	var b store
	next := ""
	for i := range 5 {
		r.Punch(10)
		next = readLog(t, s, next, i == 3, &b).Next
		r.Cut()
		r.Punch(10)
		s.Close()
		s = open(t, r)
	}
	readLog(t, s, next, false, &b)
	if stored, _ := b.counts(); stored != r.Held() {
		t.Errorf("%d punches, the terminal holds %d", stored, r.Held())
	}
}

// listen starts Listen and returns when live punches arrive; stop ends it and gives its error.
func listen(t *testing.T, r Rig, s gatepost.Session, b *store) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- s.(gatepost.LiveSource).Listen(ctx, b.emit) }()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-result:
			return err
		case <-time.After(prompt):
			return errors.New("listen does not end with its context")
		}
	})
	t.Cleanup(func() { _ = stop() })
	before, _ := b.counts()
	waitFor(t, "a live punch", func() bool {
		r.Punch(1)
		n, _ := b.counts()
		return n > before
	})
	return stop
}

func liveAndLog(t *testing.T, r Rig) {
	s := open(t, r)
	if !hasLive(s) {
		return
	}
	var b store
	stop := listen(t, r, s, &b)
	before, _ := b.counts()
	r.Punch(20)
	waitFor(t, "stored", func() bool { n, _ := b.counts(); return n >= before+20 })
	waitFor(t, "confirmed", func() bool { return r.Unconfirmed() == 0 })
	if hasLog(s) {
		readLog(t, s, "", true, &b)
		if stored, _ := b.counts(); stored != r.Held() {
			t.Errorf("%d punches, the terminal holds %d", stored, r.Held())
		}
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("listen ended with %v", err)
	}
}

func confirmedIsStored(t *testing.T, r Rig) {
	s := open(t, r)
	if !hasLive(s) {
		return
	}
	var b store
	stop := listen(t, r, s, &b)
	waitFor(t, "confirmed", func() bool { return r.Unconfirmed() == 0 })
	full := errors.New("disk full")
	b.mu.Lock() // the disk takes its time
	r.Punch(5)
	if r.Unconfirmed() < 5 {
		t.Error("punches were confirmed that are not stored")
	}
	b.fail = full
	b.mu.Unlock()
	waitFor(t, "a failed emit", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.failed > 0
	})
	if err := stop(); !errors.Is(err, full) {
		t.Errorf("listen ended with %v", err)
	}
	b.mu.Lock()
	b.fail = nil
	b.mu.Unlock()
	s.Close()
	s = open(t, r)
	if hasLog(s) {
		readLog(t, s, "", true, &b)
		if stored, _ := b.counts(); stored != r.Held() {
			t.Errorf("%d punches, the terminal holds %d", stored, r.Held())
		}
	}
}

func failedRead(t *testing.T, r Rig) {
	s := open(t, r)
	if !hasLog(s) {
		return
	}
	r.Punch(100)
	full := errors.New("disk full")
	b := store{fail: full}
	if read, err := s.(gatepost.LogSource).ReadLog(t.Context(), "", true, b.emit); !errors.Is(err, full) || read.Next != "" {
		t.Errorf("read is %+v, %v", read, err)
	}
	b.fail = nil
	s.Close()
	s = open(t, r)
	readLog(t, s, "", false, &b)
	if stored, _ := b.counts(); stored != r.Held() {
		t.Errorf("%d punches, the terminal holds %d", stored, r.Held())
	}
}

// call is one way to wait for a terminal.
type call struct {
	name string
	do   func(ctx context.Context, s gatepost.Session) error
}

// calls are those that s offers.
func calls(s gatepost.Session) []call {
	var b store
	var cs []call
	add := func(name string, do func(ctx context.Context, s gatepost.Session) error) {
		cs = append(cs, call{name, do})
	}
	if hasLog(s) {
		add("ReadLog", func(ctx context.Context, s gatepost.Session) error {
			_, err := s.(gatepost.LogSource).ReadLog(ctx, "", true, b.emit)
			return err
		})
	}
	if hasLive(s) {
		add("Listen", func(ctx context.Context, s gatepost.Session) error {
			return s.(gatepost.LiveSource).Listen(ctx, b.emit)
		})
	}
	if _, ok := s.(gatepost.Unlocker); ok {
		add("Unlock", func(ctx context.Context, s gatepost.Session) error {
			return s.(gatepost.Unlocker).Unlock(ctx, 1, time.Second)
		})
	}
	if _, ok := s.(gatepost.Clock); ok {
		add("Time", func(ctx context.Context, s gatepost.Session) error {
			_, err := s.(gatepost.Clock).Time(ctx)
			return err
		})
		add("SetTime", func(ctx context.Context, s gatepost.Session) error {
			return s.(gatepost.Clock).SetTime(ctx, "2031-02-03T04:05:06")
		})
	}
	if _, ok := s.(gatepost.UserStore); ok {
		add("Users", func(ctx context.Context, s gatepost.Session) error {
			_, err := s.(gatepost.UserStore).Users(ctx)
			return err
		})
	}
	if _, ok := s.(gatepost.Inspector); ok {
		add("Inspect", func(ctx context.Context, s gatepost.Session) error {
			_, err := s.(gatepost.Inspector).Inspect(ctx)
			return err
		})
	}
	return cs
}

// stalled runs do against a silent terminal, once per call, and checks how it ended.
func stalled(t *testing.T, r Rig, within time.Duration, act func(cancel func(), s gatepost.Session), judge func(name string, err error)) {
	if r.Stall == nil {
		return
	}
	s := open(t, r)
	for _, c := range calls(s) {
		r.Stall()
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- c.do(ctx, s) }()
		if act != nil {
			act(cancel, s)
		}
		select {
		case err := <-result:
			judge(c.name, err)
		case <-time.After(within):
			t.Fatalf("%s still waits after %v", c.name, within)
		}
		cancel()
		r.Heal()
		s.Close()
		s = open(t, r)
	}
}

func cancelEach(t *testing.T, r Rig) {
	stalled(t, r, prompt, func(cancel func(), _ gatepost.Session) { cancel() }, func(name string, err error) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s ended with %v", name, err)
		}
	})
	if r.Stall == nil {
		return
	}
	r.Stall()
	ctx, cancel := context.WithTimeout(t.Context(), r.Patience/10)
	defer cancel()
	start := time.Now()
	if _, err := r.Device.Open(ctx); err == nil {
		t.Error("a silent terminal was opened")
	}
	if took := time.Since(start); took > prompt {
		t.Errorf("open took %v", took)
	}
}

func closeEach(t *testing.T, r Rig) {
	stalled(t, r, prompt, func(_ func(), s gatepost.Session) { s.Close() }, func(name string, err error) {
		if err == nil {
			t.Errorf("%s succeeded on a closed session", name)
		}
	})
}

func halfOpen(t *testing.T, r Rig) {
	stalled(t, r, r.Patience+prompt, nil, func(name string, err error) {
		if err == nil {
			t.Errorf("%s succeeded against a silent terminal", name)
		}
	})
}

func garbage(t *testing.T, r Rig) {
	if r.Garbage == nil {
		return
	}
	s := open(t, r)
	for _, c := range calls(s) {
		r.Garbage()
		ctx, cancel := context.WithTimeout(t.Context(), r.Patience+prompt)
		if err := c.do(ctx, s); err == nil {
			t.Errorf("%s succeeded on garbage", c.name)
		}
		cancel()
		r.Heal()
		s.Close()
		s = open(t, r)
	}
}

func flood(t *testing.T, r Rig) {
	s := open(t, r)
	if !hasLive(s) || !hasLog(s) {
		return
	}
	var b store
	stop := listen(t, r, s, &b)
	for range 20 {
		r.Punch(200)
	}
	if c, ok := s.(gatepost.Clock); ok { // the link still answers
		if _, err := c.Time(t.Context()); err != nil {
			t.Error(err)
		}
	}
	_ = stop()
	s.Close()
	s = open(t, r)
	readLog(t, s, "", true, &b)
	if stored, _ := b.counts(); stored != r.Held() {
		t.Errorf("%d punches, the terminal holds %d", stored, r.Held())
	}
}

func unlockOnce(t *testing.T, r Rig) {
	s := open(t, r)
	u, ok := s.(gatepost.Unlocker)
	if !ok || r.Opened == nil {
		return
	}
	if err := u.Unlock(t.Context(), 1, time.Second); err != nil {
		t.Fatal(err)
	}
	if n := r.Opened(); n != 1 {
		t.Fatalf("the door opened %d times, want 1", n)
	}
	for _, door := range []int{-1, 0, s.Info().Doors + 1} {
		if err := u.Unlock(t.Context(), door, time.Second); err == nil || errors.Is(err, gatepost.ErrOutcomeUnknown) {
			t.Errorf("door %d: %v", door, err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := u.Unlock(gone, 1, time.Second); err == nil || errors.Is(err, gatepost.ErrOutcomeUnknown) {
		t.Errorf("given up before it left: %v", err)
	}
	if n := r.Opened(); n != 1 {
		t.Fatalf("the door opened %d times, want 1", n)
	}
	if r.Stall == nil {
		return
	}
	r.Stall()
	ctx, cancel := context.WithTimeout(t.Context(), r.Patience+prompt)
	defer cancel()
	if err := u.Unlock(ctx, 1, time.Second); !errors.Is(err, gatepost.ErrOutcomeUnknown) {
		t.Errorf("without an answer: %v", err)
	}
	r.Heal()
	s.Close()
	open(t, r)
	if n := r.Opened(); n > 2 {
		t.Errorf("the door opened %d times for two unlocks", n)
	}
}
