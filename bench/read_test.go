package bench

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatepost"
	"gatepost/agent"
	"gatepost/agent/book"
	"gatepost/agent/config"
	"gatepost/buffer"
	"gatepost/drivers"
	"gatepost/uplink"
)

// site is an agent in this process, so that its heap can be looked at. Its broker is never there.
type site struct {
	store *buffer.Store
	book  *book.Book
	conf  *config.Config
	agent *agent.Agent
}

func openSite(b *testing.B, dir, text string) *site {
	b.Helper()
	log := slog.New(slog.DiscardHandler)
	var s site
	var err error
	if s.book, err = book.Open(b.Context(), filepath.Join(dir, "book.db"), log); err != nil {
		b.Fatal(err)
	}
	if s.store, err = buffer.Open(b.Context(), filepath.Join(dir, "records.db"), buffer.Options{Log: log}); err != nil {
		b.Fatal(err)
	}
	s.conf, err = config.Parse("config.yaml", []byte(text), config.Kit{
		Drivers: drivers.All(), Uplinks: uplink.All(),
		DeviceEnv: func(id gatepost.DeviceID) gatepost.Env {
			return gatepost.Env{ID: id, Log: log, State: s.book.KeyValue(id)}
		},
		UplinkEnv: func(id, agentID string) gatepost.UplinkEnv {
			return gatepost.UplinkEnv{ID: id, Agent: agentID, Log: log}
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	s.agent = agent.New(agent.Options{ID: "bench", Version: "bench", Zone: "UTC", Trusted: true, DataDir: dir, Store: s.store,
		Book: s.book, Devices: s.conf.Devices, Uplinks: s.conf.Uplinks, Log: log})
	return &s
}

// run lets the agent work until the function it returns is called, which also closes the site.
func (s *site) run(b *testing.B) (end func()) {
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.agent.Run(ctx) }()
	return func() {
		b.Helper()
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
		if err := s.store.Close(); err != nil {
			b.Error(err)
		}
		if err := s.book.Close(); err != nil {
			b.Error(err)
		}
	}
}

// nowhere is an address at which no broker answers.
const nowhere = "127.0.0.1:1"

// BenchmarkRead reads 100 000 records of 40 bytes from a terminal, from connecting until the last one is on disk, while a
// million of ten others are known. s/again is the whole log once more, now that all are known. heap-MiB is by how much the
// heap was larger than before, at most, garbage included.
func BenchmarkRead(b *testing.B) {
	const records = 100_000
	defer debug.SetGCPercent(debug.SetGCPercent(50)) // as "gatepost run" does
	var first, again, heap []float64
	for b.Loop() {
		sim := simulator(b, "--records", fmt.Sprint(records), "--record-size", "40")
		dir := loadedDir(b)
		s := openSite(b, dir, agentConfig(dir, nowhere, [2]string{"gate", sim.addr}))
		if n := s.store.Stats().Seen; n != million {
			b.Fatalf("%d records are known", n)
		}
		grown := watchHeap()
		began := time.Now()
		end := s.run(b)
		for s.store.Stats().Seen < million+records {
			if err := s.store.Wait(b.Context(), s.store.Head()); err != nil {
				b.Fatal(err)
			}
		}
		first = append(first, time.Since(began).Seconds())
		heap = append(heap, float64(grown())/(1<<20))
		began = time.Now()
		r, err := s.agent.Do(b.Context(), gatepost.Command{ID: "again", Device: "gate", Verb: "pull", Local: true})
		if err != nil || r.Status != gatepost.StatusDone {
			b.Fatal(r, err)
		}
		again = append(again, time.Since(began).Seconds())
		if n := s.store.Stats().Seen; n != million+records+1 { // and the command's result
			b.Errorf("%d records are known at the end", n)
		}
		end()
		sim.stop(b)
	}
	b.ReportMetric(median(first), "s/100k")
	b.ReportMetric(median(again), "s/again")
	b.ReportMetric(median(heap), "heap-MiB")
	b.ReportMetric(0, "ns/op")
}

// watchHeap samples the heap until the function it returns is called, which says by how many bytes it grew at most.
func watchHeap() (grown func() int64) {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() int64 {
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	runtime.GC()
	runtime.GC() // finalizers of the first
	before := read()
	most := before
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			most = max(most, read())
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	})
	return func() int64 {
		close(stop)
		wg.Wait()
		return most - before
	}
}

// BenchmarkPollNothing is what a poll costs that finds nothing new, of a terminal that holds 50 000 records (its
// log has room: of one at capacity the count says nothing): requests to the terminal, and CPU time of everything that the
// agent does meanwhile.
func BenchmarkPollNothing(b *testing.B) {
	const polls, records = 200, 50_000
	var cpu, trips []float64
	sim := simulator(b, "--records", fmt.Sprint(records), "--record-size", "40")
	dir := b.TempDir()
	s := openSite(b, dir, agentConfig(dir, nowhere, [2]string{"gate", sim.addr}))
	gate := &turnstile{turns: make(chan int), ended: make(chan error)}
	d := &s.conf.Devices[0]
	d.Device, d.Poll = polled{d.Device, gate}, 5*time.Millisecond
	end := s.run(b)
	gate.let(b, 2) // what is there, and what came meanwhile
	for b.Loop() {
		requests, before := sim.state(b).Requests, used(b)
		gate.let(b, polls)
		cpu = append(cpu, (used(b)-before).Seconds()*1000/polls)
		trips = append(trips, float64(sim.state(b).Requests-requests)/polls)
	}
	close(gate.turns)
	end()
	if n := s.store.Stats().Seen; n != records {
		b.Errorf("%d records are known", n)
	}
	b.ReportMetric(median(cpu), "cpu-ms")
	b.ReportMetric(median(trips), "round-trips")
	b.ReportMetric(0, "ns/op")
}

// turnstile lets a number of polls through, then holds the next.
type turnstile struct {
	turns chan int
	ended chan error // after the last of them
	left  int        // of the reader alone
}

func (t *turnstile) let(b *testing.B, n int) {
	b.Helper()
	t.turns <- n
	if err := <-t.ended; err != nil {
		b.Fatal(err)
	}
}

// polled is a device that can only be polled, through a turnstile.
type polled struct {
	gatepost.Device
	gate *turnstile
}

func (d polled) Open(ctx context.Context) (gatepost.Session, error) {
	s, err := d.Device.Open(ctx)
	if err != nil {
		return nil, err
	}
	return polledSession{s, s.(gatepost.LogSource), d.gate}, nil
}

type polledSession struct {
	gatepost.Session
	log  gatepost.LogSource
	gate *turnstile
}

func (s polledSession) ReadLog(ctx context.Context, after string, full bool, emit gatepost.Emit) (gatepost.LogRead, error) {
	if s.gate.left == 0 {
		s.gate.left = <-s.gate.turns
	}
	read, err := s.log.ReadLog(ctx, after, full, emit)
	if s.gate.left--; s.gate.left == 0 {
		s.gate.ended <- err
	}
	return read, err
}

// used is the CPU time of this process.
func used(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
