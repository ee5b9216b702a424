package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/drivers/zk/zksim"
)

// crowdVar makes this binary a crowd: several terminals in one process, and people who punch at all of them.
const crowdVar = "GATEPOST_BENCH_CROWD"

// crowdOrder is a line of JSON to a crowd: so many terminals at first, later how fast people punch and how often in all.
type crowdOrder struct {
	Terminals int     `json:"terminals,omitempty"`
	Rate      float64 `json:"rate,omitempty"` // punches a second, all terminals together
	Total     int64   `json:"total,omitempty"`
}

// crowd is the crowd's process. It answers the first order with the terminals' addresses, each on a line, and says "done"
// when an order's total is reached.
func crowd(in io.Reader, out io.Writer) error {
	orders := json.NewDecoder(in)
	var o crowdOrder
	if err := orders.Decode(&o); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	sims := make([]*zksim.Terminal, o.Terminals)
	for i := range sims {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		sims[i] = zksim.New(zksim.Options{Serial: fmt.Sprintf("CROWD%d", i), Zone: time.UTC, Capacity: 1_000_000})
		wg.Go(func() { sims[i].Serve(ctx, l) })
		fmt.Fprintln(out, l.Addr())
	}
	var now atomic.Pointer[crowdOrder]
	now.Store(&crowdOrder{})
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		var user int64
		var of *crowdOrder
		var began time.Time
		var made int64
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if o := now.Load(); o != of {
				of, began, made = o, time.Now(), 0
			}
			due := int64(time.Since(began).Seconds() * of.Rate)
			if of.Total > 0 {
				due = min(due, of.Total)
			}
			for ; made < due; made++ {
				user++
				// Each punch is another person, so that none is a double of another.
				sims[user%int64(len(sims))].Punch(zksim.Punch{User: fmt.Sprint(1 + user%900_000)})
				if made == of.Total-1 {
					fmt.Fprintln(out, "done")
				}
			}
		}
	})
	for {
		var o crowdOrder
		if err := orders.Decode(&o); err != nil {
			return nil // whoever started us has gone
		}
		now.Store(&o)
	}
}

// startCrowd starts a crowd of n terminals that stand still.
func startCrowd(b *testing.B, n int) (p *process, addrs []string) {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	p = start(b, crowdVar+"=1", self)
	p.order(b, crowdOrder{Terminals: n})
	for range n {
		addrs = append(addrs, p.line(b))
	}
	return p, addrs
}

func (p *process) order(b *testing.B, o crowdOrder) {
	b.Helper()
	if err := json.NewEncoder(p.in).Encode(o); err != nil {
		b.Fatal(err)
	}
}

// TestCrowd has a crowd of two in this process.
func TestCrowd(t *testing.T) {
	in, orders := io.Pipe()
	answers, out := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := crowd(in, out); err != nil {
			t.Error(err)
		}
		out.Close()
	})
	send := json.NewEncoder(orders)
	lines := bufio.NewScanner(answers)
	send.Encode(crowdOrder{Terminals: 2})
	for range 2 {
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), "127.0.0.1:") {
			t.Fatalf("a terminal is at %q", lines.Text())
		}
	}
	send.Encode(crowdOrder{Rate: 10_000, Total: 100})
	if !lines.Scan() || lines.Text() != "done" {
		t.Errorf("the crowd says %q", lines.Text())
	}
	orders.Close()
	wg.Wait()
}
