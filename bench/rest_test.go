package bench

import (
	"bytes"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkIdle is an agent with three terminals and a broker at which nothing happens: memory after a while, and CPU over
// half a minute, heartbeat included; then memory after 50 000 punches, 5 000 a second.
func BenchmarkIdle(b *testing.B) {
	const records, terminals = 50_000, 3
	var rss, cpu, after, peak []float64
	for b.Loop() {
		addr := broker(b)
		people, addrs := startCrowd(b, terminals)
		var got atomic.Int64
		sub := client(b, addr, "subscriber")
		subscribe(b, sub, "gatepost/v1/bench/#", func(topic string, payload []byte) {
			if !bytes.Contains(payload, []byte(`"kind":"punch"`)) {
				return
			}
			got.Add(int64(recordsIn(payload)))
		})
		dir := b.TempDir()
		agent := runAgent(b, dir, agentConfig(dir, addr, [2]string{"a", addrs[0]}, [2]string{"b", addrs[1]}, [2]string{"c", addrs[2]}))
		people.order(b, crowdOrder{Rate: 100, Total: terminals})
		people.line(b)
		waitFor(b, "the first punches", func() bool { return got.Load() == terminals })
		pass(5 * time.Second)
		rss = append(rss, agent.memory(b, "VmRSS"))

		const while = 30 * time.Second
		before := agent.cpu(b)
		pass(while)
		cpu = append(cpu, 100*(agent.cpu(b)-before).Seconds()/while.Seconds())

		people.order(b, crowdOrder{Rate: 5000, Total: records})
		people.line(b)
		waitFor(b, "all punches", func() bool { return got.Load() >= records+terminals })
		pass(2 * time.Second)
		after = append(after, agent.memory(b, "VmRSS"))
		peak = append(peak, agent.memory(b, "VmHWM"))
		agent.stop(b)
		people.stop(b)
	}
	b.ReportMetric(median(rss), "rss-MiB")
	b.ReportMetric(median(cpu), "cpu-%")
	b.ReportMetric(median(after), "rss-after-MiB")
	b.ReportMetric(median(peak), "rss-peak-MiB")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkStart is the time from starting the program until a subscriber has its "online": the first time, when all files
// are to be made, and later.
func BenchmarkStart(b *testing.B) {
	addr := broker(b)
	sim := simulator(b)
	online := make(chan struct{}, 1)
	sub := client(b, addr, "subscriber")
	subscribe(b, sub, "gatepost/v1/bench/state", func(_ string, payload []byte) {
		if bytes.Contains(payload, []byte(`"online"`)) {
			online <- struct{}{}
		}
	})
	var first, later []float64
	for b.Loop() {
		dir := b.TempDir()
		for _, times := range []*[]float64{&first, &later} {
			began := time.Now()
			agent := runAgent(b, dir, agentConfig(dir, addr, [2]string{"gate", sim.addr}))
			select {
			case <-online:
			case <-time.After(patience):
				b.Fatal("not online")
			}
			*times = append(*times, float64(time.Since(began).Microseconds())/1000)
			agent.stop(b)
		}
	}
	b.ReportMetric(median(first), "first-online-ms")
	b.ReportMetric(median(later), "online-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSize is the size of the stripped program for the oldest boards.
func BenchmarkSize(b *testing.B) {
	path := filepath.Join(scratch, "gatepost-armv6")
	for b.Loop() {
		if err := build(path, "GOOS=linux", "GOARCH=arm", "GOARM=6"); err != nil {
			b.Fatal(err)
		}
	}
	f, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(f.Size())/(1<<20), "MiB")
	b.ReportMetric(0, "ns/op")
}
