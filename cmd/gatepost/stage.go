package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"

	"gatepost"
	"gatepost/drivers/zk/zksim"
)

// stage is what the demo plays on: everything around the agent, each at a real address on loopback.
//
//	terminals <-- agent --> relay (can be cut) --> broker --> backend
type stage struct {
	dir        string
	brokerAddr string
	broker     *broker.Server
	relay      *relay
	backend    *backend
	terminals  []*terminal
}

// terminal is a simulated terminal and where it is found.
type terminal struct {
	*zksim.Terminal
	id      gatepost.DeviceID
	key     uint32
	addr    string
	control string // HTTP
}

// build sets the stage up; what it starts ends with ctx and is waited for by wg. The stage is to be closed after that, also
// after an error.
func build(ctx context.Context, wg *sync.WaitGroup, dir string) (s *stage, err error) {
	s = &stage{dir: dir}
	if s.broker, s.brokerAddr, err = startBroker(); err != nil {
		return s, err
	}
	if s.relay, err = startRelay(ctx, wg, s.brokerAddr); err != nil {
		return s, err
	}
	if s.backend, err = startBackend(s.brokerAddr); err != nil {
		return s, err
	}
	for _, t := range []struct {
		id gatepost.DeviceID
		o  zksim.Options
	}{
		{"main_entrance", zksim.Options{Serial: "DEMO0001", Users: 20, Records: 40}},
		{"canteen", zksim.Options{Serial: "DEMO0002", Users: 20, Key: 1234}},
		{"workshop", zksim.Options{Serial: "DEMO0003", Users: 20, UserSize: 28, RecordSize: 16}}, // an old one
	} {
		t.o.Zone = time.UTC
		at := &terminal{Terminal: zksim.New(t.o), id: t.id, key: t.o.Key}
		if err := at.start(ctx, wg); err != nil {
			return s, err
		}
		s.terminals = append(s.terminals, at)
	}
	return s, os.WriteFile(s.configPath(), []byte(s.config()), 0o600)
}

func (s *stage) close() {
	if s.backend != nil {
		s.backend.client.Disconnect(100) // ms
	}
	if s.broker != nil {
		_ = s.broker.Close() // nothing is left to lose
	}
}

func (s *stage) configPath() string { return filepath.Join(s.dir, "config.yaml") }
func (s *stage) dataDir() string    { return filepath.Join(s.dir, "data") }

// config is what an installer would have written.
func (s *stage) config() string {
	var b strings.Builder
	fmt.Fprintf(&b, `agent:
  id: demo
  data_dir: %s
  timezone: UTC
  clock: trusted        # the demo must run on any computer; leave it out on a board
devices:
`, s.dataDir())
	for _, t := range s.terminals {
		fmt.Fprintf(&b, "  - id: %s\n    driver: zk\n    address: %s\n", t.id, t.addr)
		if t.key != 0 {
			fmt.Fprintf(&b, "    password: %d\n", t.key)
		}
	}
	fmt.Fprintf(&b, `uplinks:
  - id: cloud
    driver: mqtt
    url: mqtt://%s
`, s.relay.addr())
	return b.String()
}

func (t *terminal) start(ctx context.Context, wg *sync.WaitGroup) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.Close()
		return err
	}
	t.addr, t.control = l.Addr().String(), control.Addr().String()
	// They end with ctx; one that failed before would be missed by the tour.
	wg.Go(func() { _ = t.Serve(ctx, l) })
	wg.Go(func() { _ = serveHTTP(ctx, control, t.Control()) })
	return nil
}

// punches is all that the terminal holds.
func (t *terminal) punches() []punch {
	var ps []punch
	for _, e := range t.Log(0, t.State().Records) {
		ps = append(ps, punch{t.id, e.User, e.Time})
	}
	return ps
}

// punch is what terminal and backend can agree on.
type punch struct {
	device gatepost.DeviceID
	user   string
	wall   gatepost.Wall
}

func startBroker() (*broker.Server, string, error) {
	b := broker.New(&broker.Options{Logger: slog.New(slog.DiscardHandler)})
	if err := b.AddHook(new(auth.AllowHook), nil); err != nil {
		return nil, "", err
	}
	l := listeners.NewTCP(listeners.Config{ID: "demo", Address: "127.0.0.1:0"})
	if err := b.AddListener(l); err != nil {
		return nil, "", err
	}
	return b, l.Address(), b.Serve()
}

// relay carries bytes to the broker, until it is cut: then it closes every connection and lets none through.
type relay struct {
	l  net.Listener
	to string

	mu    sync.Mutex // guards what follows
	down  bool
	conns map[net.Conn]struct{}
}

func startRelay(ctx context.Context, wg *sync.WaitGroup, to string) (*relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{l: l, to: to, conns: map[net.Conn]struct{}{}}
	context.AfterFunc(ctx, func() {
		l.Close()
		r.cut()
	})
	wg.Go(func() {
		var carrying sync.WaitGroup
		defer carrying.Wait()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			carrying.Go(func() { r.carry(conn) })
		}
	})
	return r, nil
}

func (r *relay) addr() string { return r.l.Addr().String() }

func (r *relay) carry(near net.Conn) {
	defer near.Close()
	if !r.hold(near) {
		return
	}
	defer r.drop(near)
	far, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer far.Close()
	if !r.hold(far) {
		return
	}
	defer r.drop(far)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		_, _ = io.Copy(far, near) // how it ended does not matter
		far.Close()
		near.Close()
	})
	_, _ = io.Copy(near, far)
	far.Close()
	near.Close()
}

// hold keeps c for cut, or says that the relay is down.
func (r *relay) hold(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.down {
		r.conns[c] = struct{}{}
	}
	return !r.down
}

func (r *relay) drop(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = true
	for c := range r.conns {
		c.Close()
	}
}

func (r *relay) restore() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = false
}

// backend is the far end: it subscribes to all that the agent publishes and keeps books by record id.
type backend struct {
	client paho.Client

	mu       sync.Mutex // guards what follows
	seen     map[gatepost.ID]punch
	again    int // punches that came a second time
	commands map[string][]gatepost.Result
	teller   func(string)
}

// agentTopic is where the demo's agent publishes.
const agentTopic = "gatepost/v1/demo"

func startBackend(addr string) (*backend, error) {
	b := &backend{seen: map[gatepost.ID]punch{}, commands: map[string][]gatepost.Result{}}
	opts := paho.NewClientOptions().AddBroker("tcp://" + addr).SetClientID("backend").SetAutoReconnect(false)
	b.client = paho.NewClient(opts)
	if t := b.client.Connect(); t.Wait() && t.Error() != nil {
		return nil, t.Error()
	}
	if t := b.client.Subscribe(agentTopic+"/#", 1, func(_ paho.Client, m paho.Message) { b.take(m.Topic(), m.Payload()) }); t.Wait() && t.Error() != nil {
		return nil, t.Error()
	}
	return b, nil
}

// take books a message: records come one by one or, after a cut, in batches; results come bare.
func (b *backend) take(topic string, payload []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch topic[strings.LastIndexByte(topic, '/')+1:] {
	case "punch", "event", "status":
		payload = slices.Concat([]byte("["), payload, []byte("]"))
		fallthrough
	case "batch":
		var rs []record
		if json.Unmarshal(payload, &rs) == nil {
			for i := range rs {
				b.book(&rs[i])
			}
		}
	case "result":
		var r gatepost.Result
		if json.Unmarshal(payload, &r) == nil {
			b.commands[r.ID] = append(b.commands[r.ID], r)
			b.say("result of %s for %s: %s", r.Verb, r.Device, r.Status)
		}
	}
}

// book counts a record. b.mu is held.
func (b *backend) book(r *record) {
	b.say("%s of %s: %s", r.Kind, cmp.Or(string(r.Device), "the agent"), r.summary())
	var p gatepost.Punch
	if r.Kind != gatepost.KindPunch || json.Unmarshal(r.Data, &p) != nil {
		return
	}
	if _, known := b.seen[r.ID]; known {
		b.again++
	}
	b.seen[r.ID] = punch{r.Device, p.User, gatepost.Wall(r.TimeRaw)}
}

// say tells a person, once somebody listens. b.mu is held.
func (b *backend) say(format string, args ...any) {
	if b.teller != nil {
		b.teller(fmt.Sprintf(format, args...))
	}
}

// tell has f told of every record from now on.
func (b *backend) tell(f func(string)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.teller = f
}

// count is how many punches have arrived, each counted once.
func (b *backend) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.seen)
}

func (b *backend) results(command string) []gatepost.Result {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.commands[command])
}

// command publishes an unlock.
func (b *backend) command(id string, device gatepost.DeviceID, issued time.Time) error {
	payload, err := json.Marshal(map[string]any{"id": id, "command": "unlock", "args": map[string]any{"seconds": 3}, "issued_at": issued.UTC()})
	if err != nil {
		return err
	}
	t := b.client.Publish(fmt.Sprintf("%s/devices/%s/command", agentTopic, device), 1, false, payload)
	t.Wait()
	return t.Error()
}

// books are the backend's, summed up.
type books struct {
	punches  map[punch]int // counted by id
	distinct int           // ids
	again    int
	done     int // commands that opened a door
	refused  int
}

func (b *backend) books() books {
	b.mu.Lock()
	defer b.mu.Unlock()
	sum := books{punches: map[punch]int{}, distinct: len(b.seen), again: b.again}
	for _, p := range b.seen {
		sum.punches[p]++
	}
	for _, rs := range b.commands {
		if rs[len(rs)-1].Status == gatepost.StatusDone {
			sum.done++
		} else {
			sum.refused++
		}
	}
	return sum
}
