package zksim

import (
	"bytes"
	"fmt"
	"time"

	"gatepost/drivers/zk/zkproto"
)

// event is a live event for one client.
type event struct {
	bit  uint16
	data []byte
}

const (
	eventWindow = 64                      // events under way before the first of them is confirmed
	eventQueue  = 4096                    // events that may wait; more are in the log only
	eventWait   = 2500 * time.Millisecond // for a confirmation; then the oldest is sent again
	eventTries  = 3                       // then it is in the log only
)

// announce queues what registered clients hear of a punch. t.mu is held.
func (t *Terminal) announce(e *entry, finger bool) {
	for s := range t.sessions {
		if t.o.VerifyFirst && !s.verifying {
			continue
		}
		if finger {
			s.tell(zkproto.EventFinger, nil)
			s.tell(zkproto.EventFingerScore, []byte{100})
		}
		who := uint32(e.uid)
		if who == 0 {
			who = 0xffffffff
		}
		s.tell(zkproto.EventVerify, append(le.AppendUint32(nil, who), 1))
		s.tell(zkproto.EventAttLog, e.appendEvent(nil, t.o.EventSize))
	}
}

// Event sends an event other than a punch, whatever its data, to the clients that registered for its bit.
func (t *Terminal) Event(bit uint16, data []byte) error {
	if bit == 0 || bit&(bit-1) != 0 {
		return fmt.Errorf("event %d: want one bit", bit)
	}
	if len(data) > 1024 {
		return fmt.Errorf("event of %d bytes: want at most 1024", len(data))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range t.sessions {
		s.tell(bit, bytes.Clone(data))
	}
	return nil
}

// tell queues an event if the client asked for its kind. t.mu is held.
func (s *session) tell(bit uint16, data []byte) {
	if s.mask&uint32(bit) == 0 || len(s.queue) >= eventQueue {
		return
	}
	s.queue = append(s.queue, event{bit, data})
	s.nudge()
}

// nudge wakes sendEvents.
func (s *session) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// confirmed is the client's word that it has the oldest event.
func (s *session) confirmed() {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.flying > 0 {
		s.pop()
		s.nudge()
	}
}

// pop forgets the oldest event. t.mu is held.
func (s *session) pop() {
	s.queue = s.queue[1:]
	s.flying--
	s.tries, s.sent = 1, time.Now()
}

// nextEvent says what to send now, or how long to wait for a confirmation; 0: until woken.
func (s *session) nextEvent() (e event, ok bool, wait time.Duration) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	for s.flying > 0 {
		wait = eventWait - time.Since(s.sent)
		if wait > 0 {
			break
		}
		if s.tries < eventTries {
			s.tries++
			s.sent = time.Now()
			return s.queue[0], true, 0
		}
		s.pop()
	}
	if s.flying < len(s.queue) && s.flying < eventWindow {
		if s.flying == 0 {
			s.tries, s.sent = 1, time.Now()
		}
		s.flying++
		return s.queue[s.flying-1], true, 0
	}
	if s.flying == 0 {
		wait = 0
	}
	return event{}, false, wait
}

// sendEvents runs for the life of the connection, beside the answers.
func (s *session) sendEvents() {
	for {
		e, ok, wait := s.nextEvent()
		if ok {
			data := func(b []byte) []byte { return append(b, e.data...) }
			if s.send(frame{code: zkproto.CmdRegEvent, field: e.bit, data: data}) != nil {
				return
			}
			continue
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-s.wake:
		case <-timer:
		case <-s.done:
			return
		}
	}
}
