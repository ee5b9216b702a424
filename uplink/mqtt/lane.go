package mqtt

import (
	"sync"
	"time"
)

// lane bounds what is in flight: sent, and not confirmed yet.
//
// A backlog's lane also adapts to the link. What it has in flight stands in queues, first of all in the kernel's, ahead of
// any live record: on 20 KB/s, 1 MiB in flight would delay an unlock's result by 52 s. So, as TCP Vegas does, it measures
// how much longer a confirmation takes than the fastest one did, which is the time spent in queues, and lets into flight
// what keeps that near queueTarget.
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
		l.budget = budgetMin // grows with the first confirmations
	}
	return l
}

// enter takes room for a message of n bytes; flight is what is in flight then. Where there is no room it returns what to
// wait for before trying again. An empty lane has room for any message.
func (l *lane) enter(n int) (flight int, wait <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.messages == 0 || l.messages < l.most && l.bytes+n <= l.budget {
		l.messages++
		l.bytes += n
		return l.bytes, nil
	}
	if l.freed == nil {
		l.freed = make(chan struct{})
	}
	return 0, l.freed
}

// leave gives the room of n bytes back. took is how long the confirmation took, 0 where none came; flight is what enter said.
func (l *lane) leave(n, flight int, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.messages--
	l.bytes -= n
	if l.slow && took > 0 {
		l.adapt(flight, took)
	}
	if l.freed != nil {
		close(l.freed)
		l.freed = nil
	}
}

// adapt sets the budget to what would have been confirmed within the aim, going by a message that was the last of flight
// bytes. l.mu is held.
func (l *lane) adapt(flight int, took time.Duration) {
	if l.fastest == 0 || took < l.fastest {
		l.fastest = took
	}
	aim := l.fastest + queueTarget
	fits := int(min(float64(flight)*aim.Seconds()/took.Seconds(), budgetMost))
	if took > aim || fits > l.budget { // little in flight, fast through, proves nothing
		l.budget = max(fits, budgetMin)
	}
}

// room is the size a batch should not exceed.
func (l *lane) room() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.budget
}
