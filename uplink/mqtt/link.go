package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"gatepost"
)

// link is one connection.
type link struct {
	up      *uplink
	client  paho.Client
	conn    *conn
	tenure  *tenure
	known   bool // an earlier link of ours stood at this broker
	session string
	online  []byte // the state we publish
	take    func(gatepost.Delivery)

	live, backlog *lane

	done chan struct{}

	taking atomic.Int32 // commands handed over whose take has not returned
	strays atomic.Int32

	mu      sync.Mutex // guards what follows
	err     error      // set before done is closed
	usurped bool       // the state topic is another agent's now
}

// maxTaking bounds the commands under way. At QoS 1 the broker's own window is smaller (mosquitto: 20); at QoS 0 nothing
// else holds back a flood.
const maxTaking = 256

// stateDoc is what stands, retained, on the state topic.
type stateDoc struct {
	Agent     string `json:"agent"`
	State     string `json:"state"`
	Session   string `json:"session"`
	Version   string `json:"version,omitempty"`
	Challenge string `json:"challenge,omitempty"`
	Reason    string `json:"reason,omitempty"` // of offline: lost or stopped
}

const (
	stateOnline  = "online"
	stateOffline = "offline"
	reasonLost   = "lost"    // said by the broker, from our last will
	reasonStop   = "stopped" // said by us
)

func (l *link) Done() <-chan struct{} { return l.done }

func (l *link) Err() error {
	select {
	case <-l.done:
	default:
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// fail ends the link for a reason; the first one stays. The connection is left for Close.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		close(l.done)
	}
}

// lost is why a publish failed: what ended the connection, if that becomes known within a second, else what paho says.
func (l *link) lost(err error) error {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
		l.fail(err)
	}
	return l.Err()
}

// connectionLost is called by paho.
func (l *link) connectionLost(_ paho.Client, err error) { l.fail(l.up.explainLoss(err)) }

func (u *uplink) explainLoss(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return &gatepost.Fault{Err: errors.New("the broker closed the connection"),
			Hint: fmt.Sprintf("if this comes again and again, see the broker's log; another client may be using the client id %q", u.ClientID)}
	case strings.Contains(err.Error(), "pingresp not received"): // paho has no value for it
		return errors.New("the broker has stopped answering")
	}
	if odd, ok := errors.AsType[protocolError](err); ok {
		return odd
	}
	if op, ok := errors.AsType[*net.OpError](err); ok { // without the addresses
		err = op.Err
	}
	return fmt.Errorf("the connection to the broker was lost: %w", err)
}

// publish sends a message of our own and waits until it is confirmed or, at QoS 0, queued.
func (l *link) publish(ctx context.Context, topic string, qos byte, retained bool, payload []byte) error {
	select {
	case <-l.done:
		return l.Err()
	default:
	}
	token := l.client.Publish(topic, qos, retained, payload)
	patience := time.NewTimer(l.up.patience())
	defer patience.Stop()
	select {
	case <-token.Done():
	case <-l.done:
		return l.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-patience.C:
		return fmt.Errorf("the broker has not confirmed %s for %v", topic, l.up.patience())
	}
	if err := token.Error(); err != nil {
		return l.lost(err)
	}
	return nil
}

func (l *link) Announce(ctx context.Context, b gatepost.Birth) error {
	// A list with nothing in it is [] on the wire, never null.
	b.Verbs = append([]string{}, b.Verbs...)
	b.Devices = append([]gatepost.BirthDevice{}, b.Devices...)
	for i := range b.Devices {
		d := &b.Devices[i]
		d.Verbs = append([]string{}, d.Verbs...)
		if d.TTL == nil {
			d.TTL = map[string]float64{}
		}
	}
	doc, err := document(b)
	if err != nil {
		return fmt.Errorf("birth document: %w", err)
	}
	return l.publish(ctx, l.up.topics.register, 1, true, doc)
}

func (l *link) Beat(ctx context.Context, h gatepost.Heartbeat) error {
	if h.Devices == nil {
		h.Devices = map[string]int{}
	}
	h.Session = l.session
	doc, err := document(h)
	if err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	return l.publish(ctx, l.up.topics.heartbeat, 0, false, doc)
}

// Close says offline, unless the state topic has become another agent's, and disconnects. Where the broker does not
// confirm that in time the connection is cut, so that the broker says it for us.
func (l *link) Close(ctx context.Context) error {
	var err error
	l.mu.Lock()
	usurped := l.usurped
	l.mu.Unlock()
	if !usurped && l.client.IsConnectionOpen() {
		if err = l.sayOffline(ctx); err != nil {
			l.conn.abort(errClosed)
		}
	}
	l.fail(errClosed)
	l.client.Disconnect(250) // ms, for what is still being written
	return err
}

// sayOffline works on a link that has failed for another reason than its connection.
func (l *link) sayOffline(ctx context.Context) error {
	bye, err := document(stateDoc{Agent: l.up.env.Agent, State: stateOffline, Session: l.session, Reason: reasonStop})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, l.up.Timeout)
	defer cancel()
	token := l.client.Publish(l.up.topics.state, 1, true, bye)
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return fmt.Errorf("saying offline: %w", context.Cause(ctx))
	}
}

// command is called by paho, in a goroutine of its own, for each message on a command topic.
func (l *link) command(_ paho.Client, m paho.Message) {
	if len(m.Payload()) == 0 { // how a retained message is removed
		m.Ack()
		return
	}
	if l.taking.Add(1) > maxTaking { // at QoS 1 it stays unconfirmed and comes again with the next connection
		l.taking.Add(-1)
		l.up.env.Log.Warn("command dropped: too many at once", "count", maxTaking)
		return
	}
	defer l.taking.Add(-1)
	c, err := parseCommand(m.Payload())
	c.Retained = m.Retained()
	if t, ok := strings.CutPrefix(m.Topic(), l.up.topics.base+"devices/"); ok {
		c.Device = gatepost.DeviceID(strings.TrimSuffix(t, "/command"))
	}
	l.take(gatepost.Delivery{Command: c, Bad: err, Done: m.Ack})
}

// stray is called for what nobody subscribed to in this life, such as a topic of the agent's former name.
func (l *link) stray(_ paho.Client, m paho.Message) {
	m.Ack()
	if l.strays.Add(1) == 1 {
		l.up.env.Log.Warn("message for nobody: a former or another agent has used this client id", "addr", m.Topic())
	}
}

// state is called for each message on our own state topic.
func (l *link) state(c paho.Client, m paho.Message) {
	m.Ack()
	var s stateDoc
	if json.Unmarshal(m.Payload(), &s) != nil || s.Session == "" {
		return
	}
	switch {
	case s.Session == l.session:
	case m.Retained(): // what stood there when we came
		if l.known && l.tenure.found(s.Session) {
			l.fail(l.up.contested())
		}
	case s.State == stateOnline:
		if l.tenure.usurped(s.Session) {
			l.mu.Lock()
			l.usurped = true
			l.mu.Unlock()
			l.fail(l.up.contested())
		}
	default:
		// The last will of a connection that we replaced has come after our own word. An error would end the link anyway.
		c.Publish(l.up.topics.state, 1, true, l.online) // l.client may not be set yet
	}
}

// contested is what to say when two agents claim one place.
func (u *uplink) contested() error {
	return &gatepost.Fault{Class: gatepost.Misconfigured,
		Err:  fmt.Errorf("another agent is connected as %s", u.env.Agent),
		Hint: "stop one of the two, or give it an agent.id of its own; a copied card keeps the old one"}
}

// tenure is what we know of our place at one broker. Two agents with one id take it from each other: the broker drops
// whoever came first, and at its next connect that one finds a session on the state topic that is not its own. Once, that
// may be a broker restored from an old copy; twice in a row it is another agent. It survives links.
type tenure struct {
	mu      sync.Mutex // guards what follows
	mine    []string   // the last sessions we announced, newest last
	strikes int
}

const (
	maxStrikes   = 2
	keptSessions = 8 // some may have been lost before the broker kept them
)

// announce notes a session of our own. known says that there was one before.
func (t *tenure) announce(session string) (known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known = len(t.mine) > 0
	if t.mine = append(t.mine, session); len(t.mine) > keptSessions {
		t.mine = t.mine[1:]
	}
	return known
}

// own says whether a session is of ours. t.mu is held.
func (t *tenure) own(session string) bool {
	return slices.Contains(t.mine, session)
}

// found takes the session that stood on the state topic when we connected, and says whether the place is contested.
func (t *tenure) found(session string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.own(session) {
		t.strikes = 0
		return false
	}
	t.strikes++
	return t.strikes >= maxStrikes
}

// usurped takes a session that came online while we are, and says whether it is another's.
func (t *tenure) usurped(session string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.own(session) {
		return false
	}
	t.strikes = maxStrikes
	return true
}

func (t *tenure) has(session string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.own(session)
}

func (t *tenure) isContested() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.strikes >= maxStrikes
}

// settle forgets a contest that is over.
func (t *tenure) settle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.strikes = 0
}
