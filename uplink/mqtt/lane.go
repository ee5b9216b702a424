package mqtt

import (
	"sync"
	"time"
)

// lane bounds what is in flight: sent, and not confirmed yet.
//
// A backlog's lane also adapts to the link. What it has in flight stands in queues, first of all in the kernel's, ahead of
// any live record: on 20 KB/s, 1 MiB in flight would delay an unlock's result by 52 s. So, as LEDBAT does (RFC 6817), it
// measures how much longer a confirmation takes than the fastest one did, which is the time spent in queues, and keeps
// that near queueTarget.
type lane struct {
	most int  // messages
	slow bool // adapts

	mu       sync.Mutex // guards what follows
	messages int
	bytes    int
	budget   int           // bytes
	fastest  time.Duration // of all confirmations so far
	freed    chan struct{} // closed when something left; nil while nobody waits
}

const (
	queueTarget = 200 * time.Millisecond
	budgetMin   = 4 << 10
	budgetMost  = 1 << 20
)

func newLane(most int, adapts bool) *lane {
	l := &lane{most: max(most, 1), slow: adapts, budget: budgetMost}
	if adapts {
		l.budget = budgetMin // doubles with each round trip
	}
	return l
}

// enter takes room for a message of n bytes. Where there is none it returns what to wait for before trying again.
// An empty lane has room for any message.
func (l *lane) enter(n int) (wait <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.messages == 0 || l.messages < l.most && l.bytes+n <= l.budget {
		l.messages++
		l.bytes += n
		return nil
	}
	if l.freed == nil {
		l.freed = make(chan struct{})
	}
	return l.freed
}

// leave gives room back. took is how long the confirmation took; 0 where none came.
func (l *lane) leave(n int, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.messages--
	l.bytes -= n
	if l.slow && took > 0 {
		l.adapt(n, took)
	}
	if l.freed != nil {
		close(l.freed)
		l.freed = nil
	}
}

// adapt moves the budget after n bytes were confirmed. l.mu is held.
func (l *lane) adapt(n int, took time.Duration) {
	if l.fastest == 0 || took < l.fastest {
		l.fastest = took
	}
	switch queued := took - l.fastest; {
	case queued > queueTarget:
		l.budget = max(budgetMin, l.budget/2, int(float64(l.budget)*queueTarget.Seconds()/queued.Seconds()))
	case queued < queueTarget/2:
		l.budget = min(budgetMost, l.budget+n)
	}
}

// room is the size a batch should not exceed, so that not one alone fills the link for long.
func (l *lane) room() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.budget
}
