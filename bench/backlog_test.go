package bench

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkBacklog starts an agent on a million records that wait and drains them to a subscriber of a real broker, while
// people punch once a second. All metrics are as seen from outside: the slowest tenth of the drain against the fastest,
// by what arrives at the subscriber; the agent's largest RSS; the longest that a live punch took from the finger to the
// subscriber.
func BenchmarkBacklog(b *testing.B) {
	var even, rss, live, speed []float64
	for b.Loop() {
		// The subscriber is at most slow, never cut off.
		addr := broker(b, "max_queued_messages 0")
		sim := simulator(b, "--records", "0")
		dir := loadedDir(b)

		var mu sync.Mutex
		var got int
		var tenths []time.Time // when the subscriber had so many
		drained := make(chan struct{})
		waiting := map[string]chan struct{}{} // by user
		sub := client(b, addr, "subscriber")
		subscribe(b, sub, "gatepost/v1/bench/batch", func(_ string, payload []byte) {
			mu.Lock()
			defer mu.Unlock()
			if got == 0 {
				tenths = append(tenths, time.Now())
			}
			got += recordsIn(payload)
			for len(tenths) <= 10 && got >= len(tenths)*million/10 {
				if tenths = append(tenths, time.Now()); len(tenths) == 11 {
					close(drained)
				}
			}
		})
		subscribe(b, sub, "gatepost/v1/bench/devices/gate/punch", func(_ string, payload []byte) {
			mu.Lock()
			defer mu.Unlock()
			for user, c := range waiting {
				if strings.Contains(string(payload), `"user":"`+user+`"`) {
					close(c)
					delete(waiting, user)
				}
			}
		})

		agent := runAgent(b, dir, agentConfig(dir, addr, [2]string{"gate", sim.addr}))
		user := 900_000
		// punch says how long a punch took to the subscriber, and whether it came within so long.
		punch := func(within time.Duration) (took time.Duration, came bool) {
			user++
			c := make(chan struct{})
			mu.Lock()
			waiting[fmt.Sprint(user)] = c
			mu.Unlock()
			began := time.Now()
			sim.post(b, "/punch", fmt.Sprintf(`{"user":"%d"}`, user))
			select {
			case <-c:
				came = true
			case <-time.After(within):
			}
			return time.Since(began), came
		}
		// What is punched before the agent has its link is part of the backlog; what is punched before it has asked for
		// events comes with its next look at the log.
		for soon := 0; soon < 3; soon++ {
			waitFor(b, "a live punch", func() bool { _, came := punch(200 * time.Millisecond); return came })
		}
		mu.Lock()
		early := len(tenths) < 2
		mu.Unlock()
		if !early {
			b.Fatal("the backlog was drained before the first punch")
		}
		var passed []float64
		for under := true; under; {
			took, came := punch(patience)
			if !came {
				mu.Lock()
				defer mu.Unlock()
				b.Fatalf("punch %d is lost; %d came before, and %d of the backlog; the terminal: %+v", user, len(passed), got, sim.state(b))
			}
			passed = append(passed, took.Seconds())
			select {
			case <-drained:
				under = false
			case <-time.After(time.Second):
			}
		}
		rss = append(rss, agent.memory(b, "VmHWM"))
		live = append(live, slices.Max(passed))
		var took []float64
		for i := range 10 {
			took = append(took, tenths[i+1].Sub(tenths[i]).Seconds())
		}
		b.Logf("%d live punches; tenths took %.2f s", len(passed), took)
		even = append(even, slices.Min(took)/slices.Max(took))
		speed = append(speed, million/tenths[10].Sub(tenths[0]).Seconds())
		agent.stop(b)
		sim.stop(b)
	}
	b.ReportMetric(median(even), "evenness")
	b.ReportMetric(median(rss), "rss-MiB")
	b.ReportMetric(median(live), "live-s")
	b.ReportMetric(median(speed), "records/s")
	b.ReportMetric(0, "ns/op")
}
