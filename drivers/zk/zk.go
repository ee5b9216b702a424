// Package zk speaks to ZKTeco attendance and access terminals over TCP, port 4370: the protocol that firmware without push
// offers, and vendor software uses. The terminal is the server. What we know of it stands in docs/drivers.md.
//
// The agent makes a device of the settings and opens sessions on it. A session asks one thing at a time over one
// connection, which most terminals grant to one client only. The driver reads, opens doors and sets the clock; it never
// deletes anything on a terminal, never disables one, and never repeats an unlock.
package zk

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
)

// Driver is the family.
func Driver() gatepost.Driver {
	return gatepost.Driver{
		Name: "zk",
		Help: "ZKTeco terminals over TCP port 4370 (attendance and access, firmware without push)",
		New:  newDevice,
	}
}

// options are the settings of one terminal.
type options struct {
	Address    string          `yaml:"address"`     // host or host:port
	Password   gatepost.Secret `yaml:"password"`    // the comm key, a number; empty or 0: none
	Lenient    bool            `yaml:"lenient"`     // take frames with a wrong checksum
	UnlockUnit string          `yaml:"unlock_unit"` // what the number in an unlock counts: tenths or seconds
	Encoding   encoding        `yaml:"encoding"`    // of names and ids
	RecordSize int             `yaml:"record_size"` // bytes of a log record; 0: find out
	UserSize   int             `yaml:"user_size"`   // bytes of a user; 0: find out
	Doors      int             `yaml:"doors"`
	Timeout    time.Duration   `yaml:"timeout"` // without a byte from the terminal
}

// device is one configured terminal.
type device struct {
	options
	key  uint32
	unit time.Duration // of an unlock
	env  gatepost.Env
}

// fault is a mistake in the settings.
func fault(format string, args ...any) error {
	return &gatepost.Fault{Class: gatepost.Misconfigured, Err: fmt.Errorf(format, args...)}
}

func newDevice(opts gatepost.Decoder, env gatepost.Env) (gatepost.Device, error) {
	d := &device{env: env, options: options{
		UnlockUnit: "tenths",
		Encoding:   encodingUTF8,
		Doors:      1,
		Timeout:    10 * time.Second,
	}}
	if err := opts(&d.options); err != nil {
		return nil, err
	}
	if d.env.Log == nil {
		d.env.Log = slog.New(slog.DiscardHandler)
	}
	if d.Address == "" {
		return nil, fault("address: missing; it is under Menu > Comm. > Ethernet on the terminal")
	}
	if !strings.Contains(d.Address, ":") || strings.HasSuffix(d.Address, "]") {
		d.Address += ":" + strconv.Itoa(zkproto.Port)
	}
	host, port, err := net.SplitHostPort(d.Address)
	if err != nil || host == "" {
		return nil, fault("address: %q is not HOST or HOST:PORT", d.Address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, fault("address: %q is not a port; terminals use %d", port, zkproto.Port)
	}
	if p := strings.TrimSpace(d.Password.Reveal()); p != "" {
		n, err := strconv.ParseUint(p, 10, 32)
		if err != nil {
			return nil, fault("password: the comm key of a terminal is a number from 0 to 4294967295")
		}
		d.key = uint32(n)
	}
	switch d.UnlockUnit {
	case "tenths":
		d.unit = time.Second / 10
	case "seconds":
		d.unit = time.Second
	default:
		return nil, fault(`unlock_unit: %q is neither "tenths" nor "seconds"`, d.UnlockUnit)
	}
	switch e := encoding(strings.ToLower(string(d.Encoding))); e {
	case "utf8", encodingUTF8:
		d.Encoding = encodingUTF8
	case "iso-8859-1", encodingLatin1:
		d.Encoding = encodingLatin1
	default:
		return nil, fault("encoding: %q is not known; utf-8 and latin1 are", d.Encoding)
	}
	switch d.RecordSize {
	case 0, 16, 40, 49:
	default:
		return nil, fault("record_size: %d is not possible; 16, 40 and 49 are, and 0 finds out", d.RecordSize)
	}
	switch d.UserSize {
	case 0, 28, 72:
	default:
		return nil, fault("user_size: %d is not possible; 28 and 72 are, and 0 finds out", d.UserSize)
	}
	if d.Doors < 1 || d.Doors > 16 {
		return nil, fault("doors: %d is not from 1 to 16", d.Doors)
	}
	if d.Timeout < 100*time.Millisecond || d.Timeout > 5*time.Minute {
		return nil, fault("timeout: %v is not from 100ms to 5m", d.Timeout)
	}
	return d, nil
}

// session is one open connection.
type session struct {
	*device
	l         *link
	info      gatepost.Info
	bulk      turn // one data set at a time: a terminal has one buffer
	users     userTable
	logSize   atomic.Int32 // bytes of a log record, once known
	listening atomic.Bool
	closed    atomic.Bool
}

var (
	_ gatepost.Inspector  = (*session)(nil)
	_ gatepost.LiveSource = (*session)(nil)
	_ gatepost.LogSource  = (*session)(nil)
	_ gatepost.Unlocker   = (*session)(nil)
	_ gatepost.Clock      = (*session)(nil)
	_ gatepost.UserStore  = (*session)(nil)
)

// Open connects, logs in and asks who answers.
func (d *device) Open(ctx context.Context) (gatepost.Session, error) {
	dialer := net.Dialer{Timeout: d.Timeout}
	conn, err := dialer.DialContext(ctx, "tcp", d.Address)
	if err != nil {
		return nil, &gatepost.Fault{
			Err:  fmt.Errorf("connect: %w", err),
			Hint: "is the terminal on, and is this its address (Menu > Comm. > Ethernet)? Most terminals serve one program at a time",
		}
	}
	s, err := d.open(ctx, conn)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// open makes a session of a connection.
func (d *device) open(ctx context.Context, conn net.Conn) (*session, error) {
	s := &session{device: d, l: newLink(conn, d.env.Log, d.Timeout, d.Lenient)}
	if err := s.l.login(ctx, d.key); err != nil {
		s.l.close()
		return nil, fmt.Errorf("login at %s: %w", d.Address, err)
	}
	info, err := s.Inspect(ctx)
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	s.info = info
	return s, nil
}

// Info is what the terminal told at opening.
func (s *session) Info() gatepost.Info { return s.info }

// goodbye is how long the terminal may take to answer EXIT.
const goodbye = 500 * time.Millisecond

// Close says EXIT, so that the terminal takes its next client at once, and ends the connection.
func (s *session) Close() error {
	if s.closed.Swap(true) {
		<-s.l.done
		return nil
	}
	s.l.exit(goodbye)
	s.l.close()
	return nil
}
