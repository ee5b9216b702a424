package mqtt

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"go.yaml.in/yaml/v4"

	"gatepost"
	"gatepost/internal/need"
	"gatepost/uplink/uplinktest"
)

const patience = 20 * time.Second

// mosquitto is a real broker on a loopback port.
type mosquitto struct {
	t    testing.TB
	port int
	conf string
	cmd  *exec.Cmd
	log  string
}

// startMosquitto starts a broker with Debian's defaults and the lines of extra. Without "listener" among them it listens
// on a free loopback port and lets everybody in.
func startMosquitto(t testing.TB, extra string) *mosquitto {
	t.Helper()
	dir := t.TempDir()
	m := &mosquitto{t: t, port: freePort(t), log: filepath.Join(dir, "log")}
	text := fmt.Sprintf("listener %d 127.0.0.1\n", m.port) + extra
	if !strings.Contains(extra, "allow_anonymous") {
		text += "\nallow_anonymous true\n"
	}
	if os.Geteuid() == 0 {
		text += "user root\n" // or it could not read the test's files
	}
	m.conf = filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(m.conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.stop)
	m.start()
	return m
}

func (m *mosquitto) start() {
	m.t.Helper()
	program := need.Program(m.t, "mosquitto")
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	m.cmd = exec.Command(program, "-c", m.conf, "-v")
	m.cmd.Stdout, m.cmd.Stderr = log, log
	if err := m.cmd.Start(); err != nil {
		m.t.Fatalf("these tests need a broker: apt-get install mosquitto mosquitto-clients (%v)", err)
	}
	waitFor(m.t, "mosquitto to listen", func() bool {
		c, err := net.Dial("tcp", m.addr())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// stop kills it: no word to its clients.
func (m *mosquitto) stop() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait() // killed
	m.cmd = nil
	if m.t.Failed() {
		b, _ := os.ReadFile(m.log)
		if len(b) > 8000 {
			b = b[len(b)-8000:]
		}
		m.t.Logf("mosquitto said:\n%s", b)
	}
}

func (m *mosquitto) addr() string { return fmt.Sprintf("127.0.0.1:%d", m.port) }
func (m *mosquitto) url() string  { return "mqtt://" + m.addr() }

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// heard is a message as a backend got it.
type heard struct {
	topic    string
	payload  string
	retained bool
}

// ear is a backend: a second client of the broker.
type ear struct {
	paho.Client
	mu  sync.Mutex
	got []heard
}

func listen(t testing.TB, broker string, filters ...string) *ear {
	t.Helper()
	e := new(ear)
	o := paho.NewClientOptions().AddBroker(broker).SetClientID(fmt.Sprintf("ear-%d", time.Now().UnixNano())).SetMaxReconnectInterval(100 * time.Millisecond).
		SetConnectTimeout(patience).SetProtocolVersion(4)
	o.SetOnConnectHandler(func(c paho.Client) {
		for _, f := range filters {
			c.Subscribe(f, 1, func(_ paho.Client, m paho.Message) {
				e.mu.Lock()
				defer e.mu.Unlock()
				e.got = append(e.got, heard{m.Topic(), string(m.Payload()), m.Retained()})
			}).Wait()
		}
	})
	e.Client = paho.NewClient(o)
	connected(t, e.Connect())
	t.Cleanup(func() { e.Disconnect(0) })
	if len(filters) > 0 { // the subscriptions are done when a message of our own came back
		topic := strings.NewReplacer("#", "ready", "+", "ready").Replace(filters[len(filters)-1])
		waitFor(t, "the subscriptions", func() bool {
			connected(t, e.Publish(topic, 1, false, "ready"))
			return len(e.on(topic)) > 0
		})
		e.forget()
	}
	return e
}

func connected(t testing.TB, token paho.Token) {
	t.Helper()
	if !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatalf("the test's own client: %v", token.Error())
	}
}

func (e *ear) all() []heard {
	e.mu.Lock()
	defer e.mu.Unlock()
	var got []heard
	for _, h := range e.got {
		if h.payload != "ready" {
			got = append(got, h)
		}
	}
	return got
}

// on lists the payloads that came on topic.
func (e *ear) on(topic string) (payloads []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.got {
		if h.topic == topic {
			payloads = append(payloads, h.payload)
		}
	}
	return payloads
}

func (e *ear) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.got = nil
}

// retained is what stands on topic, for somebody who comes now.
func retained(t testing.TB, broker, topic string) string {
	t.Helper()
	found := make(chan string, 1)
	o := paho.NewClientOptions().AddBroker(broker).SetClientID(fmt.Sprintf("look-%d", time.Now().UnixNano()))
	c := paho.NewClient(o)
	connected(t, c.Connect())
	defer c.Disconnect(0)
	connected(t, c.Subscribe(topic, 1, func(_ paho.Client, m paho.Message) {
		select {
		case found <- string(m.Payload()):
		default:
		}
	}))
	select {
	case s := <-found:
		return s
	case <-time.After(2 * time.Second):
		return ""
	}
}

// proxy stands between an uplink and its broker.
type proxy struct {
	t      testing.TB
	l      net.Listener
	to     string
	mu     sync.Mutex
	conns  map[net.Conn]bool
	refuse bool
	held   chan struct{} // closed when answers may pass; nil: they may
	rate   int           // bytes per second upwards; 0: unlimited
}

func startProxy(t testing.TB, to string) *proxy { return startSlowProxy(t, to, 0) }

func startSlowProxy(t testing.TB, to string, rate int) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, l: l, to: to, rate: rate, conns: make(map[net.Conn]bool)}
	t.Cleanup(func() { l.Close(); p.hold(false); p.cut() })
	go p.serve()
	return p
}

func (p *proxy) url() string { return "mqtt://" + p.l.Addr().String() }

func (p *proxy) serve() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refuse := p.refuse
		p.mu.Unlock()
		far, err := net.Dial("tcp", p.to)
		if refuse || err != nil {
			c.Close()
			if far != nil {
				far.Close()
			}
			continue
		}
		p.mu.Lock()
		p.conns[c], p.conns[far] = true, true
		p.mu.Unlock()
		go p.pass(far, c, true)
		go p.pass(c, far, false)
	}
}

func (p *proxy) pass(to, from net.Conn, up bool) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 4<<10)
	var due time.Time // when the bytes passed so far are through
	if p.rate > 0 {
		b = b[:256]
		_ = from.(*net.TCPConn).SetReadBuffer(4 << 10) // a slow link has little room
	}
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if up && p.rate > 0 {
			if now := time.Now(); due.Before(now) {
				due = now
			}
			due = due.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
			<-time.After(time.Until(due))
		}
		p.mu.Lock()
		held := p.held
		p.mu.Unlock()
		if !up && held != nil {
			<-held
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

func (p *proxy) shut(refuse bool) {
	p.mu.Lock()
	p.refuse = refuse
	p.mu.Unlock()
	if refuse {
		p.cut()
	}
}

func (p *proxy) hold(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if yes && p.held == nil {
		p.held = make(chan struct{})
	}
	if !yes && p.held != nil {
		close(p.held)
		p.held = nil
	}
}

// newUplink makes an uplink of the agent site-042 from lines of YAML.
func newUplink(t testing.TB, lines ...string) gatepost.Uplink {
	t.Helper()
	u, err := New(decoder(lines...), env(t))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func decoder(lines ...string) gatepost.Decoder {
	return func(into any) error {
		return yaml.Load([]byte(strings.Join(lines, "\n")), into, yaml.WithKnownFields())
	}
}

func env(t testing.TB) gatepost.UplinkEnv {
	return gatepost.UplinkEnv{ID: "cloud", Agent: "site-042", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func ignore(d gatepost.Delivery) { d.Done() }

// connect dials and closes when the test ends.
func connect(t testing.TB, u gatepost.Uplink, session string, take func(gatepost.Delivery)) gatepost.Link {
	t.Helper()
	if take == nil {
		take = ignore
	}
	link, err := u.Dial(t.Context(), uplinktest.Hello(session), take)
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { bye(t, link) })
	return link
}

func bye(t testing.TB, link gatepost.Link) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Second)
	defer cancel()
	_ = link.Close(ctx) // the broker may be gone
}

func waitFor(t testing.TB, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !so() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}
