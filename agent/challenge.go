package agent

import (
	"crypto/rand"
	"crypto/subtle"
	"sync"
	"time"
)

// challengeLife is how long after its publication a challenge proves that a command is fresh.
const challengeLife = 60 * time.Second

// challenges are the random words that the agent publishes, so that a command can prove to be fresh where clocks are in
// doubt. Times are compared by the monotonic clock.
type challenges struct {
	mu     sync.Mutex
	recent []published // newest last
}

type published struct {
	word string
	at   time.Time
}

// rotate makes a new challenge and forgets those that are too old to count.
func (c *challenges) rotate(now time.Time) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.recent) > 0 && now.Sub(c.recent[0].at) > challengeLife {
		c.recent = c.recent[1:]
	}
	c.recent = append(c.recent, published{rand.Text()[:16], now})
	return c.recent[len(c.recent)-1].word
}

// publish is the newest challenge, taken to be published now.
func (c *challenges) publish(now time.Time) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := &c.recent[len(c.recent)-1]
	last.at = now
	return last.word
}

// fresh says whether word was published within the last minute.
func (c *challenges) fresh(word string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.recent {
		if subtle.ConstantTimeCompare([]byte(p.word), []byte(word)) == 1 && now.Sub(p.at) <= challengeLife {
			return true
		}
	}
	return false
}
