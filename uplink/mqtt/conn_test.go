package mqtt

import (
	"bytes"
	"io"
	"net"
	"testing"
	"testing/iotest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// scripted is a network connection that says what stands in it.
type scripted struct {
	net.Conn
	io.Reader
}

func (s scripted) Read(p []byte) (int, error)       { return s.Reader.Read(p) }
func (s scripted) Close() error                     { return nil }
func (s scripted) SetWriteDeadline(time.Time) error { return nil }
func (s scripted) Write(p []byte) (int, error)      { return len(p), nil }

// through reads everything that a conn hands on of b.
func through(b []byte, wrap func(io.Reader) io.Reader) ([]byte, error) {
	c := newConn(scripted{Reader: wrap(bytes.NewReader(b))}, time.Second)
	defer c.Close()
	return io.ReadAll(c)
}

func whole(r io.Reader) io.Reader { return r }

var connack = []byte{0x20, 2, 0, 0}

func publish(t testing.TB, topic string, payload []byte) []byte {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.Qos, p.MessageID, p.TopicName, p.Payload = 1, 77, topic, payload
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestLongPublishIsCut(t *testing.T) {
	in := bytes.Clone(connack)
	in = append(in, publish(t, "a", make([]byte, 5<<20))...)
	in = append(in, publish(t, "b", []byte("next"))...)
	got, err := through(in, whole)
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(got[len(connack):])
	first, err := packets.ReadPacket(r)
	if err != nil {
		t.Fatal(err)
	}
	if p := first.(*packets.PublishPacket); p.TopicName != "a" || p.MessageID != 77 || len(p.Payload) <= maxCommand || len(p.Payload) > maxPacket {
		t.Errorf("the long one became %v with %d bytes", p, len(p.Payload))
	}
	second, err := packets.ReadPacket(r)
	if err != nil {
		t.Fatal(err)
	}
	if p := second.(*packets.PublishPacket); p.TopicName != "b" || string(p.Payload) != "next" || r.Len() != 0 {
		t.Errorf("the next one became %v", p)
	}
}

func TestHostilePackets(t *testing.T) {
	for in, want := range map[string]string{
		"\x90\xff\xff\xff\x7f": "the broker sent a packet of 268435455 bytes",
		"\x30\xff\xff\xff\xff": "the broker sent a packet with an impossible length",
	} {
		if _, err := through(append(bytes.Clone(connack), in...), whole); err == nil || err.Error() != want {
			t.Errorf("% x: %v, want %s", in, err, want)
		}
	}
}

// What is not too long comes through as it is, however it was cut on the way; nothing else panics or grows.
func FuzzConn(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x40, 2, 0, 1})
	f.Add([]byte{0x32, 0x85, 0x80, 0x00, 0, 1, 'a', 0, 7}) // a length in more bytes than it needs
	f.Add(publish(f, "t", make([]byte, maxPacket)))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := append(bytes.Clone(connack), b...)
		one, err := through(in, whole)
		two, err2 := through(in, iotest.OneByteReader)
		if !bytes.Equal(one, two) || (err == nil) != (err2 == nil) {
			t.Fatalf("% x: %v\n% x: %v", one, err, two, err2)
		}
		if len(one) > len(in) {
			t.Errorf("%d bytes became %d", len(in), len(one))
		}
	})
}
