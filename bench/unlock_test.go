package bench

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"golang.org/x/sys/unix"

	"gatepost/drivers/zk/zkproto"
)

// BenchmarkUnlock is an unlock from the command published to its result received, at a broker with its defaults, while
// 1 000 people a second punch at four terminals.
//
// busy: the door is at one of these terminals. In turns with the commands the floor is measured, under the same load: a
// bare echo between two clients of the broker, two fdatasyncs, a round trip to a terminal, one after the other. quiet-floor
// is the same before anybody punches.
//
// bulk: the door is at a fifth terminal, on a link of 100 KB/s, whose log of 100 000 records is being read.
func BenchmarkUnlock(b *testing.B) {
	b.Run("busy", func(b *testing.B) {
		const commands = 600
		var p50, p99, floor50, floor99, quiet []float64
		for b.Loop() {
			s := openStreet(b)
			f := openFloor(b, s)
			quiet = append(quiet, quantile(measured(200, f.sample), 0.5))
			s.fill(b)
			var unlocks, floors []float64
			for range commands {
				pass(rand.N(10 * time.Millisecond)) // in no step with anything
				unlocks = append(unlocks, s.unlock("a"))
				floors = append(floors, f.sample())
			}
			s.stillFull(b)
			p50, p99 = append(p50, quantile(unlocks, 0.5)), append(p99, quantile(unlocks, 0.99))
			floor50, floor99 = append(floor50, quantile(floors, 0.5)), append(floor99, quantile(floors, 0.99))
			s.close()
		}
		b.ReportMetric(median(p50)/median(floor50), "p50/floor")
		b.ReportMetric(median(p99)/median(floor50), "p99/floor")
		b.ReportMetric(median(p50), "p50-ms")
		b.ReportMetric(median(p99), "p99-ms")
		b.ReportMetric(median(floor50), "floor-p50-ms")
		b.ReportMetric(median(floor99), "floor-p99-ms")
		b.ReportMetric(median(quiet), "quiet-floor-ms")
		b.ReportMetric(0, "ns/op")
	})
	b.Run("bulk", func(b *testing.B) {
		const commands = 150
		var p50, p99 []float64
		for b.Loop() {
			slow := simulator(b, "--serial", "SLOW", "--records", "100000")
			slow.post(b, "/fault", `{"kind":"throttle","bytes":100000}`)
			s := openStreet(b, [2]string{"slow", slow.addr})
			s.fill(b)
			var unlocks []float64
			for range commands {
				pass(rand.N(100 * time.Millisecond))
				unlocks = append(unlocks, s.unlock("slow"))
			}
			s.stillFull(b)
			requests := slow.state(b).Requests
			waitFor(b, "the bulk read to go on", func() bool { return slow.state(b).Requests > requests })
			p50, p99 = append(p50, quantile(unlocks, 0.5)), append(p99, quantile(unlocks, 0.99))
			s.close()
			slow.stop(b)
		}
		b.ReportMetric(median(p50), "p50-ms")
		b.ReportMetric(median(p99), "p99-ms")
		b.ReportMetric(0, "ns/op")
	})
}

// street is an agent with terminals at which people punch, and a backend that sends commands and takes all records.
type street struct {
	b       *testing.B
	dir     string
	addr    string // of the broker
	people  *process
	agent   *process
	spare   string // a terminal that the agent does not know
	backend paho.Client
	results chan result
	got     atomic.Int64 // punches at the backend
	since   time.Time
	had     int64
	n       int // commands
}

type result struct {
	ID     string
	Status string
	Error  any
}

func openStreet(b *testing.B, more ...[2]string) *street {
	b.Helper()
	s := &street{b: b, dir: b.TempDir(), addr: broker(b), results: make(chan result, 16)}
	taker := client(b, s.addr, "taker")
	subscribe(b, taker, "gatepost/v1/bench/devices/+/punch", func(_ string, payload []byte) { s.got.Add(1) })
	s.backend = client(b, s.addr, "backend")
	subscribe(b, s.backend, "gatepost/v1/bench/devices/+/result", func(_ string, payload []byte) {
		var r result
		if err := json.Unmarshal(payload, &r); err != nil {
			b.Error(err)
		}
		s.results <- r
	})
	var addrs []string
	s.people, addrs = startCrowd(b, 5)
	s.spare = addrs[4]
	terminals := append(more, [2]string{"a", addrs[0]}, [2]string{"b", addrs[1]}, [2]string{"c", addrs[2]}, [2]string{"d", addrs[3]})
	// What the terminals say before the link is up comes as a batch.
	online := make(chan struct{}, 100)
	for _, topic := range []string{"devices/+/status", "batch"} {
		subscribe(b, taker, "gatepost/v1/bench/"+topic, func(_ string, payload []byte) {
			for range bytes.Count(payload, []byte(`"state":"online"`)) {
				online <- struct{}{}
			}
		})
	}
	s.agent = runAgent(b, s.dir, agentConfig(s.dir, s.addr, terminals...))
	for range terminals {
		select {
		case <-online:
		case <-time.After(patience):
			b.Fatal("the terminals are not online")
		}
	}
	return s
}

func (s *street) close() {
	s.agent.stop(s.b)
	s.people.stop(s.b)
}

// rate is what people punch in a second.
const rate = 1000

// fill has people punch, and returns when they all get through.
func (s *street) fill(b *testing.B) {
	b.Helper()
	// The fifth terminal of the crowd, which the agent does not know, gets its share too.
	s.people.order(b, crowdOrder{Rate: rate * 5 / 4})
	waitFor(b, "the first punches", func() bool { return s.got.Load() > 2*rate })
	s.since, s.had = time.Now(), s.got.Load()
}

// stillFull checks that what was to flow did.
func (s *street) stillFull(b *testing.B) {
	b.Helper()
	if r := float64(s.got.Load()-s.had) / time.Since(s.since).Seconds(); r < 0.95*rate {
		b.Errorf("%.0f punches a second came through, want %d", r, rate)
	}
}

// unlock opens the door of a terminal and says how many ms that took.
func (s *street) unlock(device string) float64 {
	s.b.Helper()
	s.n++
	id := fmt.Sprintf("unlock-%d", s.n)
	began := time.Now()
	command := fmt.Sprintf(`{"id":%q,"command":"unlock","args":{"seconds":1},"issued_at":%q}`, id, began.UTC().Format(time.RFC3339Nano))
	s.backend.Publish("gatepost/v1/bench/devices/"+device+"/command", 1, false, command)
	for {
		select {
		case r := <-s.results:
			if r.ID != id || r.Status == "accepted" {
				continue
			}
			if r.Status != "done" {
				s.b.Fatalf("%+v", r)
			}
			return ms(time.Since(began))
		case <-time.After(patience):
			s.b.Fatal("no result")
		}
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func measured(n int, sample func() float64) (v []float64) {
	for range n {
		v = append(v, sample())
	}
	return v
}

// floor does what an unlock cannot do without.
type floor struct {
	b       *testing.B
	client  paho.Client
	echoes  chan struct{}
	file    *os.File
	conn    net.Conn
	session uint16
	reply   uint16
}

func openFloor(b *testing.B, s *street) *floor {
	b.Helper()
	f := &floor{b: b, client: client(b, s.addr, "caller"), echoes: make(chan struct{}, 1)}
	echo := client(b, s.addr, "echo")
	subscribe(b, echo, "bench/there", func(_ string, payload []byte) { echo.Publish("bench/back", 1, false, payload) })
	subscribe(b, f.client, "bench/back", func(string, []byte) { f.echoes <- struct{}{} })
	var err error
	if f.file, err = os.Create(filepath.Join(s.dir, "floor")); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.file.Close() })
	if f.conn, err = net.Dial("tcp", s.spare); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.conn.Close() })
	f.session = f.ask(zkproto.CmdConnect)
	return f
}

// sample is one of each, in ms.
func (f *floor) sample() float64 {
	f.b.Helper()
	payload := make([]byte, 200)
	began := time.Now()
	f.client.Publish("bench/there", 1, false, payload)
	select {
	case <-f.echoes:
	case <-time.After(patience):
		f.b.Fatal("no echo")
	}
	for range 2 {
		if _, err := f.file.Write(payload); err != nil {
			f.b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.file.Fd())); err != nil {
			f.b.Fatal(err)
		}
	}
	f.ask(zkproto.CmdGetTime)
	return ms(time.Since(began))
}

// ask sends a command without data to the terminal, in a frame as small as can be, and returns the session of the answer.
func (f *floor) ask(code uint16) (session uint16) {
	f.b.Helper()
	le := binary.LittleEndian
	p := le.AppendUint32(nil, zkproto.Magic)
	p = le.AppendUint32(p, zkproto.HeaderLen)
	sum := uint32(code) + uint32(f.session) + uint32(f.reply)
	for _, v := range []uint16{code, ^uint16(sum&0xffff + sum>>16), f.session, f.reply} {
		p = le.AppendUint16(p, v)
	}
	f.reply++
	if _, err := f.conn.Write(p); err != nil {
		f.b.Fatal(err)
	}
	f.conn.SetReadDeadline(time.Now().Add(patience))
	var head [zkproto.PrefixLen + zkproto.HeaderLen]byte
	if _, err := io.ReadFull(f.conn, head[:]); err != nil {
		f.b.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, f.conn, int64(le.Uint32(head[4:]))-zkproto.HeaderLen); err != nil {
		f.b.Fatal(err)
	}
	if got := le.Uint16(head[8:]); got != zkproto.AckOK {
		f.b.Fatalf("the terminal answers %d to %d", got, code)
	}
	return le.Uint16(head[12:])
}
