package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatepost"
	"gatepost/agent/book"
	"gatepost/buffer"
	"gatepost/drivers/zk/zksim"
	"gatepost/internal/need"

	paho "github.com/eclipse/paho.mqtt.golang"
)

var kills = flag.Int("kills", 60, "how often TestKill kills the agent")

// TestKill is the promise itself: the agent is killed (SIGKILL) again and again while terminals punch, commands go down and
// the broker comes and goes. Every punch must be at the subscriber, once by id; every command must have one final result
// that the doors agree with.
//
// The parts are real: the built program, Debian's mosquitto, terminals on sockets. Between agent and broker a relay adds
// delay, so that a kill finds records on their way.
func TestKill(t *testing.T) {
	need.Program(t, "mosquitto")
	dir := t.TempDir()
	t.Cleanup(func() {
		if b, err := os.ReadFile(filepath.Join(dir, "agent.log")); err == nil && t.Failed() {
			t.Logf("end of the agents' log:\n%s", b[max(0, len(b)-8000):])
		}
	})
	program := buildProgram(t, dir)
	broker := newFlappingBroker(t, dir)
	relay := delayRelay(t, broker.addr, 15*time.Millisecond)
	ear := newEar(t, broker.addr)

	const terminals = 3
	sims := make([]*zksim.Terminal, terminals)
	var conf strings.Builder
	fmt.Fprintf(&conf, "agent:\n  id: site-k\n  data_dir: %s\n  timezone: UTC\n  clock: trusted\ndevices:\n", filepath.Join(dir, "data"))
	for i := range sims {
		sims[i] = zksim.New(zksim.Options{Serial: fmt.Sprintf("KILL%d", i), Zone: time.UTC})
		l := listen(t)
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := sims[i].Serve(ctx, l); err != nil {
				t.Errorf("terminal %d: %v", i, err)
			}
		})
		t.Cleanup(func() { stop(); wg.Wait() })
		if err := sims[i].Fault(zksim.Fault{Kind: "delay", Duration: 30 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&conf, "  - id: t%d\n    driver: zk\n    address: %s\n    poll: 1s\n", i, l.Addr())
	}
	fmt.Fprintf(&conf, "uplinks:\n  - id: cloud\n    driver: mqtt\n    url: mqtt://%s\n", relay)
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, []byte(conf.String()), 0o600); err != nil {
		t.Fatal(err)
	}

	// The broker keeps commands for an agent that is away, once it has met it.
	first := startProgram(t, program, config, dir)
	select {
	case <-ear.online:
	case <-time.After(20 * time.Second):
		t.Fatal("the agent did not come online")
	}
	first.kill(t)

	work, rest := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	for i, sim := range sims {
		busy.Go(func() { punchAway(t, work, sim) })
		busy.Go(func() { ear.commandAway(work, i) })
	}
	busy.Go(func() { broker.flap(work) })

	var unconfirmed, inFlight int
	for n := range *kills {
		agent := startProgram(t, program, config, dir)
		life := 400*time.Millisecond + rand.N(600*time.Millisecond)
		select {
		case <-time.After(life):
		case <-t.Context().Done():
		}
		ear.waitForCommand(15*time.Millisecond + rand.N(35*time.Millisecond)) // the relay's delay, and then the terminal's
		agent.kill(t)
		waiting, open := examine(t, filepath.Join(dir, "data"), filepath.Join(dir, "copy"))
		if waiting {
			unconfirmed++
		}
		if open {
			inFlight++
		}
		if n%20 == 19 {
			t.Logf("%d kills: %d with unconfirmed records, %d with a command in flight", n+1, unconfirmed, inFlight)
		}
	}
	rest()
	busy.Wait()
	broker.up(t)
	if unconfirmed*2 < *kills {
		t.Errorf("only %d of %d kills hit unconfirmed records; the test proves too little", unconfirmed, *kills)
	}
	if inFlight*3 < *kills {
		t.Errorf("only %d of %d kills hit a command in flight; the test proves too little", inFlight, *kills)
	}

	agent := startProgram(t, program, config, dir)
	injected := map[string]int{}
	for i, sim := range sims {
		for _, e := range sim.Log(0, sim.State().Records) {
			injected[fmt.Sprintf("t%d %s %s", i, e.User, e.Time)]++
		}
	}
	deadline := time.Now().Add(90 * time.Second)
	for !ear.complete(injected) && time.Now().Before(deadline) {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
	agent.terminate(t)
	ear.judge(t, injected, sims)
}

// punchAway lets people punch until ctx ends; one in ten presses twice in the same second.
func punchAway(t *testing.T, ctx context.Context, sim *zksim.Terminal) {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for user := 1; ; user++ {
		p := zksim.Punch{User: fmt.Sprint(user)}
		if user%10 == 0 {
			p.Count = 2
		}
		if err := sim.Punch(p); err != nil {
			t.Errorf("punch: %v", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// examine looks into a copy of what a killed agent left: are records unconfirmed, is a command open?
func examine(t *testing.T, data, copyDir string) (unconfirmed, open bool) {
	t.Helper()
	if err := os.RemoveAll(copyDir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(copyDir, 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(data, "*.db*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range files {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copyDir, filepath.Base(from)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	b, err := book.Open(t.Context(), filepath.Join(copyDir, "book.db"), log)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	left, err := b.Unfinished(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		open = open || e.State != book.Final
	}
	s, err := buffer.Open(t.Context(), filepath.Join(copyDir, "records.db"), buffer.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return s.Head() > s.Place("cloud").Done, open
}

// program is a running agent.
type program struct {
	cmd *exec.Cmd
	log *os.File
}

func buildProgram(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "gatepost")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

func startProgram(t *testing.T, path, config, dir string) *program {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(dir, "agent.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	p := &program{cmd: exec.Command(path, "run", "--config", config), log: log}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// kill ends the agent without warning. That it had ended before by itself is an error.
func (p *program) kill(t *testing.T) {
	t.Helper()
	defer p.log.Close()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Errorf("kill: %v", err)
	}
	var exit *exec.ExitError
	err := p.cmd.Wait()
	if e, ok := err.(*exec.ExitError); ok {
		exit = e
	}
	if exit == nil || exit.ExitCode() != -1 {
		t.Fatalf("the agent ended by itself: %v", err)
	}
}

// terminate asks the agent to stop, which must take at most 5 seconds and end well.
func (p *program) terminate(t *testing.T) {
	t.Helper()
	defer p.log.Close()
	p.cmd.Process.Signal(syscall.SIGTERM)
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("stopped with %v", err)
		}
	case <-time.After(10 * time.Second):
		p.cmd.Process.Kill()
		t.Error("did not stop within 10 s")
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// delayRelay passes bytes on to addr, each a while after it came, in both directions.
func delayRelay(t *testing.T, addr string, delay time.Duration) string {
	l := listen(t)
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(func() { stop(); l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", addr)
				if err != nil {
					return
				}
				defer out.Close()
				defer context.AfterFunc(ctx, func() { in.Close(); out.Close() })()
				var both sync.WaitGroup
				both.Go(func() { pipe(out, in, delay) })
				both.Go(func() { pipe(in, out, delay) })
				both.Wait()
			})
		}
	})
	return l.Addr().String()
}

// pipe copies from to to, delayed; at the end of one side it closes both.
func pipe(to, from net.Conn, delay time.Duration) {
	type piece struct {
		at time.Time
		b  []byte
	}
	pieces := make(chan piece, 1024)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer to.Close()
		for p := range pieces {
			if wait := time.Until(p.at); wait > 0 {
				<-time.After(wait)
			}
			if _, err := to.Write(p.b); err != nil {
				break
			}
		}
		from.Close()
		for range pieces {
		}
	})
	for {
		b := make([]byte, 16<<10)
		n, err := from.Read(b)
		if n > 0 {
			pieces <- piece{time.Now().Add(delay), b[:n]}
		}
		if err != nil {
			break
		}
	}
	close(pieces)
	wg.Wait()
}

// flappingBroker is a mosquitto that keeps its sessions over restarts, as one in production does.
type flappingBroker struct {
	addr, conf string
	mu         sync.Mutex
	cmd        *exec.Cmd
}

func newFlappingBroker(t *testing.T, dir string) *flappingBroker {
	t.Helper()
	l := listen(t)
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	b := &flappingBroker{addr: addr, conf: filepath.Join(dir, "mosquitto.conf")}
	store := filepath.Join(dir, "mosquitto")
	if err := os.Mkdir(store, 0o777); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location %s/\nmax_queued_messages 0\nuser root\n", port, store)
	if err := os.WriteFile(b.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	b.up(t)
	t.Cleanup(b.down)
	return b
}

// up starts the broker if it is not running and waits until it answers.
func (b *flappingBroker) up(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd != nil {
		return
	}
	cmd := exec.Command("mosquitto", "-c", b.conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("mosquitto does not start (apt-get install mosquitto): %v", err)
	}
	b.cmd = cmd
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := net.Dial("tcp", b.addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("mosquitto does not answer: %v", err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func (b *flappingBroker) down() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd == nil {
		return
	}
	b.cmd.Process.Signal(syscall.SIGTERM)
	b.cmd.Wait()
	b.cmd = nil
}

func (b *flappingBroker) flap(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(2*time.Second + rand.N(3*time.Second)):
		}
		b.down()
		select {
		case <-ctx.Done():
			return
		case <-time.After(rand.N(800 * time.Millisecond)):
		}
		cmd := exec.Command("mosquitto", "-c", b.conf)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if cmd.Start() == nil {
			b.mu.Lock()
			b.cmd = cmd
			b.mu.Unlock()
		}
	}
}

// ear is the backend: it hears everything, sends commands, and keeps account of both.
type ear struct {
	client paho.Client
	online chan struct{} // closed when the agent was online once
	once   sync.Once

	mu       sync.Mutex
	punches  map[string]string   // record id -> "device user time"
	finals   map[string][]string // command id -> final statuses told
	commands map[string]sentCommand
	pending  int           // commands published and not yet finally answered
	sent     chan struct{} // closed and replaced when a command is sent
}

type sentCommand struct {
	device int
	tenths int // of a second that it asks the door to stay open: how its opening is known again
	at     time.Time
	stale  bool
}

func newEar(t *testing.T, addr string) *ear {
	t.Helper()
	e := &ear{online: make(chan struct{}), punches: map[string]string{}, finals: map[string][]string{}, commands: map[string]sentCommand{}, sent: make(chan struct{})}
	o := paho.NewClientOptions().AddBroker("tcp://" + addr).SetClientID("backend").SetCleanSession(false).
		SetAutoReconnect(true).SetMaxReconnectInterval(200 * time.Millisecond).SetConnectRetry(true).SetConnectRetryInterval(100 * time.Millisecond).
		SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { e.hear(t, m) })
	e.client = paho.NewClient(o)
	if tok := e.client.Connect(); !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
		t.Fatalf("subscriber: %v", tok.Error())
	}
	if tok := e.client.Subscribe("gatepost/v1/site-k/#", 1, nil); !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
		t.Fatalf("subscribe: %v", tok.Error())
	}
	t.Cleanup(func() { e.client.Disconnect(100) })
	return e
}

func (e *ear) hear(t *testing.T, m paho.Message) {
	type record struct {
		ID      string `json:"id"`
		Device  string `json:"device"`
		Kind    string `json:"kind"`
		TimeRaw string `json:"time_raw"`
		Status  string `json:"status"`
		Data    struct {
			User string `json:"user"`
		} `json:"data"`
	}
	var rs []record
	topic := m.Topic()
	switch {
	case strings.HasSuffix(topic, "/state"):
		if strings.Contains(string(m.Payload()), "online") {
			e.once.Do(func() { close(e.online) })
		}
	case strings.HasSuffix(topic, "/batch"):
		if err := json.Unmarshal(m.Payload(), &rs); err != nil {
			t.Errorf("batch: %v", err)
		}
	case strings.HasSuffix(topic, "/punch"), strings.HasSuffix(topic, "/result"):
		rs = make([]record, 1)
		if err := json.Unmarshal(m.Payload(), &rs[0]); err != nil {
			t.Errorf("%s: %v", topic, err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range rs {
		switch {
		case r.Kind == "punch":
			e.punches[r.ID] = fmt.Sprintf("%s %s %s", r.Device, r.Data.User, r.TimeRaw)
		case r.Status != "" && gatepost.ResultStatus(r.Status).Final():
			if len(e.finals[r.ID]) == 0 {
				e.pending--
			}
			e.finals[r.ID] = append(e.finals[r.ID], r.Status)
		}
	}
}

// commandAway sends unlocks to one terminal until ctx ends: mostly good ones, some stale, some twice.
func (e *ear) commandAway(ctx context.Context, device int) {
	for n := 0; ; n++ {
		c := sentCommand{device: device, tenths: 1 + n%250, at: time.Now(), stale: n%9 == 8}
		issued := c.at
		if c.stale {
			issued = issued.Add(-time.Minute)
		}
		id := fmt.Sprintf("t%d-%d", device, n)
		body, _ := json.Marshal(map[string]any{"id": id, "command": "unlock", "issued_at": issued.UTC().Format(time.RFC3339Nano),
			"args": map[string]any{"seconds": float64(c.tenths) / 10}})
		e.mu.Lock()
		e.commands[id] = c
		e.pending++
		close(e.sent)
		e.sent = make(chan struct{})
		e.mu.Unlock()
		topic := fmt.Sprintf("gatepost/v1/site-k/devices/t%d/command", device)
		e.client.Publish(topic, 1, false, body)
		if n%7 == 6 {
			e.client.Publish(topic, 1, false, body)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(80 * time.Millisecond):
		}
	}
}

// waitForCommand waits until a command is sent, at most a second, and then a while.
func (e *ear) waitForCommand(then time.Duration) {
	e.mu.Lock()
	sent := e.sent
	e.mu.Unlock()
	select {
	case <-sent:
	case <-time.After(time.Second):
	}
	<-time.After(then)
}

// complete says whether every punch and every final result has been heard.
func (e *ear) complete(injected map[string]int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	total := 0
	for _, n := range injected {
		total += n
	}
	return len(e.punches) >= total && e.pending == 0
}

func (e *ear) judge(t *testing.T, injected map[string]int, sims []*zksim.Terminal) {
	e.mu.Lock()
	defer e.mu.Unlock()
	heard := map[string]int{}
	for _, what := range e.punches {
		heard[what]++
	}
	total, wrong := 0, 0
	for what, n := range injected {
		total += n
		if heard[what] != n {
			if wrong++; wrong < 10 {
				t.Errorf("punch %s: %d injected, %d ids arrived", what, n, heard[what])
			}
		}
	}
	for what := range heard {
		if injected[what] == 0 {
			t.Errorf("punch %s arrived, but nobody punched", what)
		}
	}

	openings := map[string]int{} // by command id
	for i, sim := range sims {
		for _, o := range sim.State().Doors {
			id, best := "", time.Duration(1<<62)
			for cid, c := range e.commands {
				if c.device == i && c.tenths == int(o.Seconds*10+0.5) {
					if off := o.At.Sub(c.at); off > -time.Second && off < best {
						id, best = cid, off
					}
				}
			}
			if id == "" {
				t.Errorf("terminal %d opened for %.1f s and nobody asked", i, o.Seconds)
			}
			openings[id]++
		}
	}
	counts := map[string]int{}
	for id, c := range e.commands {
		finals := e.finals[id]
		if len(finals) == 0 {
			t.Errorf("command %s has no final result", id)
			continue
		}
		for _, s := range finals[1:] {
			if s != finals[0] {
				t.Errorf("command %s ended as %v", id, finals)
			}
		}
		counts[finals[0]]++
		n := openings[id]
		switch gatepost.ResultStatus(finals[0]) {
		case gatepost.StatusDone:
			if n != 1 {
				t.Errorf("command %s is done and opened %d doors", id, n)
			}
		case gatepost.StatusUnknown:
			if n > 1 {
				t.Errorf("command %s is unknown and opened %d doors", id, n)
			}
		default:
			if n != 0 {
				t.Errorf("command %s is %s and opened %d doors", id, finals[0], n)
			}
		}
		if c.stale && finals[0] != string(gatepost.StatusExpired) {
			t.Errorf("stale command %s is %s", id, finals[0])
		}
	}
	t.Logf("%d punches, %d commands %v, %d openings", total, len(e.commands), counts, len(openings))
}
