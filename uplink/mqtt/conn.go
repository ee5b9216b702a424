package mqtt

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// tcpConn acknowledges at once what it reads. A broker without TCP_NODELAY, which is mosquitto's default, otherwise
// waits for our delayed acknowledgement: 40 ms on every command (measured: 42.8 ms without, 0.4 ms with).
type tcpConn struct {
	*net.TCPConn
}

func newTCPConn(c *net.TCPConn) tcpConn {
	// Go sets TCP_NODELAY itself; the kernel forgets TCP_QUICKACK, so it is set again after each read.
	quickAck(c)
	return tcpConn{c}
}

func (c tcpConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	quickAck(c.TCPConn)
	return n, err
}

// conn stands between paho and the network (TCP, or TLS over it), for three reasons:
//
//   - paho reads a packet in three system calls and blocks its caller for as long as a write blocks. Here reads are
//     buffered, and writes are only queued: a goroutine sends them, many in one call when they come fast. What is
//     queued is bounded by what lanes let into flight.
//   - paho allocates whatever length a packet claims, up to 256 MiB. Here a PUBLISH longer than maxPacket is cut there,
//     and what is left of it is too long to be a command (see parseCommand); any other packet of that length ends the link.
//   - paho takes a closed connection for an orderly end. Here the first error is kept and every Read tells it.
type conn struct {
	net.Conn
	timeout time.Duration // of each write

	r     *bufio.Reader
	head  [5]byte // the fixed header of the current packet, as handed on
	next  []byte  // what of head was not read yet
	body  int     // bytes of the current packet to hand on after that
	skip  int     // bytes of it to drop after those
	begun bool    // the first packet was seen

	mu      sync.Mutex // guards what follows
	queue   []byte     // written, not sent yet
	closing bool
	err     error         // the first error
	wake    chan struct{} // capacity 1: the queue is not empty, or closing
	sent    chan struct{} // closed when the sending goroutine ended
}

// maxPacket leaves room for the topic beside the longest command.
const maxPacket = maxCommand + 1024

var errClosed = errors.New("the link was closed")

func newConn(c net.Conn, timeout time.Duration) *conn {
	w := &conn{
		Conn: c, timeout: timeout, r: bufio.NewReaderSize(c, 4<<10),
		wake: make(chan struct{}, 1), sent: make(chan struct{}),
	}
	go w.send()
	return w
}

// Write queues p.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if c.closing {
		return 0, errClosed
	}
	c.queue = append(c.queue, p...)
	c.signal()
	return len(p), nil
}

func (c *conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// send writes the queue to the network until the connection ends or closes.
func (c *conn) send() {
	defer close(c.sent)
	var spare []byte
	for range c.wake {
		c.mu.Lock()
		out, closing, err := c.queue, c.closing, c.err
		c.queue = spare
		c.mu.Unlock()
		if err != nil {
			return
		}
		if len(out) > 0 {
			_ = c.Conn.SetWriteDeadline(time.Now().Add(c.timeout)) // a closed connection fails in Write
			if _, err := c.Conn.Write(out); err != nil {
				c.abort(err)
				return
			}
		}
		if closing {
			return // Write refuses once closing is set, so nothing came after out
		}
		if spare = out[:0]; cap(spare) > 64<<10 {
			spare = nil
		}
	}
}

// abort ends the connection for a reason that Read and Write will give.
func (c *conn) abort(why error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = why
	}
	c.signal()
	c.mu.Unlock()
	_ = c.Conn.Close() // a reason was already given
}

// Close sends what is queued, for at most a second, and closes.
func (c *conn) Close() error {
	c.mu.Lock()
	c.closing = true
	c.signal()
	c.mu.Unlock()
	late := time.AfterFunc(time.Second, func() { c.abort(errClosed) })
	<-c.sent
	late.Stop()
	c.abort(errClosed)
	return nil
}

// SetDeadline is for reading; writes have their own.
func (c *conn) SetDeadline(t time.Time) error { return c.Conn.SetReadDeadline(t) }

// SetWriteDeadline does nothing: Write does not block.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// Read gives packets as they come, except those too long.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.read(p)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.err == nil {
			c.err = err
		}
		return n, c.err
	}
	return n, nil
}

func (c *conn) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(c.next) == 0 && c.body == 0 {
		if err := c.header(); err != nil {
			return 0, err
		}
	}
	if len(c.next) > 0 {
		n := copy(p, c.next)
		c.next = c.next[n:]
		return n, nil
	}
	n, err := c.r.Read(p[:min(len(p), c.body)])
	c.body -= n
	return n, err
}

// header reads the fixed header of the next packet: a type in the upper four bits, then the length of the rest in one to
// four bytes of seven bits each, lowest first (MQTT 3.1.1, section 2.2).
//
//	+--------+---------+---------+ - - - -
//	| type   | length  | (more)  | rest
//	+--------+---------+---------+ - - - -
//	0        1         2 … 4
func (c *conn) header() error {
	if c.skip > 0 {
		if _, err := c.r.Discard(c.skip); err != nil {
			return err
		}
		c.skip = 0
	}
	kind, err := c.r.ReadByte()
	if err != nil {
		return err
	}
	const connack, publish = 0x20, 0x30
	if !c.begun && kind != connack {
		more, _ := c.r.Peek(min(c.r.Buffered(), 7)) // buffered bytes cannot fail
		return &notMQTTError{append([]byte{kind}, more...)}
	}
	length := 0
	for shift := 0; ; shift += 7 {
		b, err := c.r.ReadByte()
		if err != nil {
			return err
		}
		length |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			break
		}
		if shift == 21 {
			return protocolError("the broker sent a packet with an impossible length")
		}
	}
	if !c.begun {
		c.begun = true
		// CONNACK: flags, then a code; paho takes codes beyond 5 for success.
		if b, err := c.r.Peek(2); err == nil && length == 2 && b[1] > 5 {
			return protocolError(fmt.Sprintf("the broker refused with code %d, which MQTT 3.1.1 does not have", b[1]))
		}
	}
	if length > maxPacket {
		if kind&0xf0 != publish {
			return protocolError(fmt.Sprintf("the broker sent a packet of %d bytes", length))
		}
		c.skip, length = length-maxPacket, maxPacket
	}
	c.body = length
	c.next = append(c.head[:0], kind)
	for n := length; ; n >>= 7 {
		if n < 0x80 {
			c.next = append(c.next, byte(n))
			return nil
		}
		c.next = append(c.next, byte(n)|0x80)
	}
}

// protocolError is what a broker should not do.
type protocolError string

func (e protocolError) Error() string { return string(e) }

// notMQTTError is an answer that no broker gives.
type notMQTTError struct{ first []byte }

func (e *notMQTTError) Error() string {
	return fmt.Sprintf("what answers there is not an MQTT broker: it began with %q", e.first)
}
