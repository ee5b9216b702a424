package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"golang.org/x/sys/unix"

	"gatepost"
	"gatepost/buffer"
)

// scratch is a directory for what all benchmarks of a run share: the program, a file with a million records.
var scratch string

func TestMain(m *testing.M) {
	if os.Getenv(crowdVar) != "" {
		if err := crowd(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "crowd:", err)
			os.Exit(1)
		}
		return
	}
	var err error
	if scratch, err = os.MkdirTemp("", "gatepost-bench"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// patience bounds every wait for something that should come soon.
const patience = time.Minute

// program is the built gatepost, stripped as it is shipped.
var program = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "gatepost")
	return path, build(path)
})

// build compiles gatepost as scripts/cross.sh does; env adds to the environment.
func build(path string, env ...string) error {
	c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=bench", "-o", path, "gatepost/cmd/gatepost")
	c.Env = append(os.Environ(), append(env, "CGO_ENABLED=0")...)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

func gatepostProgram(b *testing.B) string {
	b.Helper()
	path, err := program()
	if err != nil {
		b.Fatal(err)
	}
	return path
}

// process is another program at work. It dies with this one.
type process struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// start starts a program whose standard output is read through out. Stderr is shown if the benchmark fails.
func start(b *testing.B, env string, name string, args ...string) *process {
	b.Helper()
	p := &process{Cmd: exec.Command(name, args...)}
	if env != "" {
		p.Env = append(os.Environ(), env)
	}
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := os.CreateTemp(b.TempDir(), "stderr")
	if err != nil {
		b.Fatal(err)
	}
	p.Stderr = stderr
	if p.in, err = p.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	out, err := p.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		p.stop(b)
		stderr.Close()
		if text, err := os.ReadFile(stderr.Name()); err == nil && b.Failed() {
			b.Logf("%s %s:\n%s", filepath.Base(name), strings.Join(args, " "), text[max(0, len(text)-4000):])
		}
	})
	return p
}

// stop ends p and waits for it; it may be called twice.
func (p *process) stop(b *testing.B) {
	if p.ProcessState != nil {
		return
	}
	p.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(10*time.Second, func() { p.Process.Kill() })
	defer late.Stop()
	p.in.Close()
	p.Wait()
}

// line is the next line that p prints.
func (p *process) line(b *testing.B) string {
	b.Helper()
	if !p.out.Scan() {
		b.Fatalf("%s ended early: %v", filepath.Base(p.Path), p.out.Err())
	}
	return p.out.Text()
}

// memory is a field of /proc/PID/status such as VmRSS, in MiB.
func (p *process) memory(b *testing.B, field string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatalf("no %s of process %d", field, p.Process.Pid)
	return 0
}

// cpu is the time that all threads of p have run.
func (p *process) cpu(b *testing.B) time.Duration {
	b.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.Process.Pid))
	if err != nil || len(files) == 0 {
		b.Fatal("no schedstat: ", err)
	}
	var sum time.Duration
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// broker starts mosquitto as Debian ships it but for a listener, and extra lines.
func broker(b *testing.B, extra ...string) (addr string) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	lines := append([]string{"listener " + port + " 127.0.0.1", "allow_anonymous true"}, extra...)
	conf := filepath.Join(b.TempDir(), "mosquitto.conf")
	if err := os.WriteFile(conf, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		b.Fatal(err)
	}
	name, err := exec.LookPath("mosquitto")
	if err != nil {
		name = "/usr/sbin/mosquitto" // not everybody's PATH has sbin
	}
	start(b, "", name, "-c", conf)
	waitFor(b, "mosquitto", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return addr
}

// simulator starts "gatepost simulate zk".
func simulator(b *testing.B, args ...string) *terminal {
	b.Helper()
	p := start(b, "", gatepostProgram(b), append([]string{"simulate", "zk", "--zone", "UTC", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"}, args...)...)
	t := &terminal{process: p}
	line := p.line(b)
	t.addr = line[strings.LastIndexByte(line, ' ')+1:]
	line = p.line(b)
	t.control = line[strings.LastIndexByte(line, ' ')+1:]
	return t
}

type terminal struct {
	*process
	addr, control string
}

// post sends JSON to the simulator's control.
func (t *terminal) post(b *testing.B, path, body string) {
	b.Helper()
	r, err := http.Post(t.control+path, "application/json", strings.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	defer r.Body.Close()
	if text, _ := io.ReadAll(r.Body); r.StatusCode != http.StatusOK {
		b.Fatalf("%s: %s", path, text)
	}
}

// state is what the simulator tells of itself.
func (t *terminal) state(b *testing.B) (s struct{ Records, Clients, Requests int }) {
	b.Helper()
	r, err := http.Get(t.control + "/state")
	if err != nil {
		b.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		b.Fatal(err)
	}
	return s
}

// agentConfig is a config.yaml with one uplink, to the broker at addr, and terminals by id.
func agentConfig(dir, addr string, terminals ...[2]string) string {
	var c strings.Builder
	fmt.Fprintf(&c, "agent:\n  id: bench\n  data_dir: %s\n  timezone: UTC\n  clock: trusted\ndevices:\n", dir)
	for _, t := range terminals {
		fmt.Fprintf(&c, "  - {id: %s, driver: zk, address: \"%s\"}\n", t[0], t[1])
	}
	fmt.Fprintf(&c, "uplinks:\n  - {id: cloud, driver: mqtt, url: \"mqtt://%s\"}\n", addr)
	return c.String()
}

// runAgent starts "gatepost run".
func runAgent(b *testing.B, dir, config string) *process {
	b.Helper()
	path := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	return start(b, "", gatepostProgram(b), "run", "--config", path)
}

// client connects to the broker. It acknowledges at once what it reads, as gatepost does, so that a broker without
// TCP_NODELAY costs no 40 ms.
func client(b *testing.B, addr, id string) paho.Client {
	b.Helper()
	o := paho.NewClientOptions().AddBroker("tcp://" + addr).SetClientID(id).SetAutoReconnect(false)
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		return quickConn{c.(*net.TCPConn)}, nil
	})
	c := paho.NewClient(o)
	settled(b, c.Connect())
	b.Cleanup(func() { c.Disconnect(50) })
	return c
}

// subscribe has got called, in order, with each message.
func subscribe(b *testing.B, c paho.Client, topic string, got func(topic string, payload []byte)) {
	b.Helper()
	settled(b, c.Subscribe(topic, 1, func(_ paho.Client, m paho.Message) { got(m.Topic(), m.Payload()) }))
}

func settled(b *testing.B, t paho.Token) {
	b.Helper()
	if !t.WaitTimeout(patience) || t.Error() != nil {
		b.Fatal("broker: ", t.Error())
	}
}

type quickConn struct{ *net.TCPConn }

func (c quickConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if raw, rerr := c.SyscallConn(); rerr == nil {
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) })
	}
	return n, err
}

// recordsIn counts the records of a message.
func recordsIn(payload []byte) int { return bytes.Count(payload, []byte(`"seq":`)) }

func waitFor(b *testing.B, what string, ok func() bool) {
	b.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			b.Fatal("still waiting for ", what)
		}
	}
}

// pass lets time pass; what is measured is what happens meanwhile.
func pass(d time.Duration) { <-time.After(d) }

func median(v []float64) float64 { return quantile(v, 0.5) }

func quantile(v []float64, q float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[min(int(q*float64(len(v))), len(v)-1)]
}

// million is how many records wait in the file that loaded makes: those of ten terminals, 100 000 each, from 2025.
const million = 1_000_000

// loaded is the path of a records.db in which a million records wait for the uplink "cloud", all known. To be copied.
var loaded = sync.OnceValues(func() (string, error) {
	ctx := context.Background()
	path := filepath.Join(scratch, "records.db")
	s, err := buffer.Open(ctx, path, buffer.Options{})
	if err != nil {
		return "", err
	}
	if err := s.SetUplinks(ctx, []buffer.Uplink{{ID: "cloud", Required: true, FromOldest: true}}); err != nil {
		return "", err
	}
	began := time.Date(2025, 1, 1, 6, 0, 0, 0, time.UTC)
	for terminal := range 10 {
		identity := fmt.Sprintf("KNOWN%d", terminal)
		for from := 0; from < million/10; from += 10_000 {
			es := make([]buffer.Entry, 10_000)
			for i := range es {
				at := began.Add(time.Duration(from+i) * 5 * time.Minute)
				wall, user := gatepost.WallOf(at), fmt.Sprint((from+i)%500)
				es[i] = buffer.Entry{
					Stored: gatepost.Stored{
						ID:     gatepost.NewID(identity, gatepost.KindPunch, user+"|"+string(wall)+"|0|0"),
						Device: gatepost.DeviceID(fmt.Sprintf("door%d", terminal)), Kind: gatepost.KindPunch,
						Time: at, TimeRaw: string(wall), Received: at.Add(time.Second), Clock: gatepost.ClockTrusted,
						Data: fmt.Appendf(nil, `{"user":%q,"method":"finger","direction":"in","raw":{"verify":1,"state":0}}`, user),
					},
					Source: identity, Minute: wall.Minute(),
				}
			}
			if _, err := s.Put(ctx, es...); err != nil {
				return "", err
			}
		}
	}
	return path, s.Close()
})

// loadedDir is a data directory with a copy of the loaded file.
func loadedDir(b *testing.B) string {
	b.Helper()
	path, err := loaded()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	for _, suffix := range []string{"", "-wal"} {
		if err := copyFile(filepath.Join(dir, "records.db"+suffix), path+suffix); err != nil && !os.IsNotExist(err) {
			b.Fatal(err)
		}
	}
	unix.Sync() // so that the disk is not busy with it later
	return dir
}

func copyFile(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	return err
}
