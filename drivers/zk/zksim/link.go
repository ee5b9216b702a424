package zksim

import (
	"errors"
	"net"
	"sync"
	"time"
)

// link sends frames over one TCP connection, and misbehaves there. It is all of the sending side that knows TCP: a
// session says what to send, not how it travels.
type link struct {
	t    *Terminal
	conn net.Conn
	done chan struct{} // closed when the connection is given up
	once sync.Once

	mu     sync.Mutex // guards all below, and keeps frames whole
	buf    []byte     // frames that wait for others to be written with
	frames int        // in buf
	bulk   bool       // some of them are bulk data
	due    time.Time  // when a throttled line is free again
	dead   bool       // stalled for ever
}

// writeTimeout is how long a client may refuse to read.
const writeTimeout = 30 * time.Second

var errGone = errors.New("connection given up")

// kill gives the connection up. It does not wait.
func (l *link) kill() {
	l.once.Do(func() {
		close(l.done)
		reset(l.conn)
	})
}

// sleep returns false where the connection was given up meanwhile.
func (l *link) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.done:
		return false
	}
}

// frame is one frame to send.
type frame struct {
	code, field, reply uint16
	data               func([]byte) []byte // appends the data; nil: none
	bulk               bool                // part of a bulk answer
	more               bool                // others follow
	hold               bool                // written with the one that follows
}

func (l *link) send(f frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := len(l.buf)
	l.buf = appendFrame(l.buf, f.code, f.field, f.reply, f.data)
	l.t.spoil(l.buf[at:])
	l.frames++
	l.bulk = l.bulk || f.bulk
	if glue, ok := l.t.standing("glue"); f.hold || ok && f.more && l.frames < glue.Count {
		return nil
	}
	err := l.write(l.buf, l.bulk)
	l.buf, l.frames, l.bulk = l.buf[:0], 0, false
	return err
}

// write is called with mu held.
func (l *link) write(b []byte, bulk bool) error {
	for len(b) > 0 {
		if l.dead {
			return nil
		}
		s := l.t.plan(len(b), bulk)
		if s.rate > 0 && !l.sleep(time.Until(l.due)) {
			return errGone
		}
		_ = l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := l.conn.Write(b[:s.n]); err != nil {
			return err
		}
		b = b[s.n:]
		if s.rate > 0 {
			if now := time.Now(); l.due.Before(now) {
				l.due = now
			}
			l.due = l.due.Add(time.Duration(s.n) * time.Second / time.Duration(s.rate))
		}
		switch {
		case s.drop:
			// What went out must arrive before the end does: no reset here.
			_ = l.conn.Close()
			l.kill()
			return errGone
		case s.stall && s.pause == 0:
			l.dead = true
		case s.pause > 0 && !l.sleep(s.pause):
			return errGone
		}
	}
	return nil
}
