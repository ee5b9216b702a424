package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"syscall"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"gatepost"
)

// Dial tries each address once. Where all fail the error names each; it is Misconfigured only if a person must act on
// every one of them.
func (u *uplink) Dial(ctx context.Context, hello gatepost.Hello, take func(gatepost.Delivery)) (gatepost.Link, error) {
	var failed *gatepost.Fault
	for _, addr := range u.addrs {
		l, err := u.dial(ctx, addr, hello, take)
		if err == nil {
			return l, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		err = fmt.Errorf("%s: %w", addr, err)
		if failed == nil {
			failed = &gatepost.Fault{Class: gatepost.ClassOf(err), Hint: gatepost.HintOf(err), Err: err}
			continue
		}
		failed.Err = fmt.Errorf("%w; %w", failed.Err, err)
		if failed.Class != gatepost.ClassOf(err) {
			failed.Class = gatepost.Temporary
		}
		if hint := gatepost.HintOf(err); failed.Hint == "" {
			failed.Hint = hint
		}
	}
	return nil, failed
}

func (u *uplink) dial(ctx context.Context, addr *url.URL, hello gatepost.Hello, take func(gatepost.Delivery)) (*link, error) {
	tenure := u.tenureAt(addr)
	if tenure.isContested() {
		switch u.probe(ctx, addr, tenure) {
		case stateOnline:
			return nil, u.contested()
		case stateOffline:
			tenure.settle()
		}
	}

	l := &link{
		up:      u,
		tenure:  tenure,
		session: hello.Session,
		take:    take,
		live:    newLane(u.Window, false),
		backlog: newLane(u.Window/4, true),
		done:    make(chan struct{}),
	}
	will, err := document(stateDoc{Agent: u.env.Agent, State: stateOffline, Session: hello.Session, Reason: reasonLost})
	if err != nil {
		return nil, err
	}
	l.online, err = document(stateDoc{Agent: u.env.Agent, State: stateOnline, Session: hello.Session, Version: hello.Version, Challenge: hello.Challenge})
	if err != nil {
		return nil, err
	}

	o := u.clientOptions(u.ClientID)
	o.SetCleanSession(!u.AllowCommands) // a persistent session is only good for commands
	o.SetBinaryWill(u.topics.state, will, 1, true)
	o.SetDefaultPublishHandler(l.stray)
	o.SetConnectionLostHandler(l.connectionLost)
	l.client, l.conn, err = u.connect(ctx, addr, o, func(c paho.Client) { // before connecting: commands that waited come at once
		c.AddRoute(u.topics.state, l.state)
		if u.AllowCommands {
			c.AddRoute(u.topics.command, l.command)
			c.AddRoute(u.topics.deviceCommands, l.command)
		}
	})
	if err != nil {
		return nil, err
	}
	l.known = tenure.announce(hello.Session)
	if err := l.greet(ctx, hello.Birth); err != nil {
		_ = l.Close(ctx) // err is the reason
		return nil, err
	}
	return l, nil
}

// greet subscribes and says who is there.
func (l *link) greet(ctx context.Context, b gatepost.Birth) error {
	topics := map[string]byte{l.up.topics.state: 0} // at QoS 0 nothing old waits in the session
	if l.up.AllowCommands {
		topics[l.up.topics.command] = 1
		topics[l.up.topics.deviceCommands] = 1
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.up.Timeout, fmt.Errorf("logged in, but the broker did not answer the rest within %v", l.up.Timeout))
	defer cancel()
	token := l.client.SubscribeMultiple(topics, nil)
	select {
	case <-token.Done():
	case <-l.done:
		return l.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := token.Error(); err != nil {
		return l.lost(err)
	}
	const refused = 0x80
	for topic, code := range token.(*paho.SubscribeToken).Result() {
		switch {
		case code != refused:
		case topic == l.up.topics.state:
			l.up.env.Log.Warn("the broker refuses to show us our own state; another agent of our name would go unnoticed", "addr", topic)
		default:
			// Records still flow, so this must not end the link.
			l.up.env.Log.Error("the broker refuses the subscription: no commands will arrive", "addr", topic,
				"hint", "allow this user to read the topic in the broker's ACL, or set allow_commands: false")
		}
	}
	if err := l.publish(ctx, l.up.topics.state, 1, true, l.online); err != nil {
		return err
	}
	return l.Announce(ctx, b)
}

func (u *uplink) tenureAt(addr *url.URL) *tenure {
	u.mu.Lock()
	defer u.mu.Unlock()
	t := u.tenures[addr]
	if t == nil {
		t = new(tenure)
		u.tenures[addr] = t
	}
	return t
}

// probe looks, under a client id of its own that pushes nobody out, whether another agent is online in our place: the
// answer is the state it found, empty where it found none.
func (u *uplink) probe(ctx context.Context, addr *url.URL, t *tenure) (state string) {
	found := make(chan string, 1)
	o := u.clientOptions(u.ClientID + "-probe")
	o.SetCleanSession(true)
	o.SetAutoAckDisabled(false)
	client, _, err := u.connect(ctx, addr, o, func(c paho.Client) {
		c.AddRoute(u.topics.state, func(_ paho.Client, m paho.Message) {
			var s stateDoc
			if json.Unmarshal(m.Payload(), &s) != nil {
				return
			}
			if t.has(s.Session) {
				s.State = stateOffline
			}
			select {
			case found <- s.State:
			default:
			}
		})
	})
	if err != nil {
		return ""
	}
	defer client.Disconnect(250)
	client.Subscribe(u.topics.state, 0, nil)
	wait := time.NewTimer(min(u.Timeout, 2*time.Second)) // a topic that keeps nothing is not told apart from silence
	defer wait.Stop()
	select {
	case state = <-found:
	case <-wait.C:
	case <-ctx.Done():
	}
	return state
}

// clientOptions are the same for every connection.
func (u *uplink) clientOptions(clientID string) *paho.ClientOptions {
	return paho.NewClientOptions().
		SetClientID(clientID).
		SetUsername(u.Username).
		SetPassword(u.Password.Reveal()).
		SetProtocolVersion(4). // 3.1.1, and no second try with 3.1
		SetKeepAlive(u.Keepalive).
		SetPingTimeout(u.Timeout).
		SetConnectTimeout(u.Timeout).
		SetWriteTimeout(2 * time.Second). // how long a Publish that the end of the connection catches halfway may hang; conn never blocks
		SetAutoReconnect(false).
		SetConnectRetry(false).
		SetOrderMatters(false). // a command that takes its time holds up neither the next nor our confirmations
		SetAutoAckDisabled(true).
		SetStore(paho.NewMemoryStore())
}

// connect makes one attempt at one address.
func (u *uplink) connect(ctx context.Context, addr *url.URL, o *paho.ClientOptions, prepare func(paho.Client)) (paho.Client, *conn, error) {
	late := fmt.Errorf("connected, but no broker answered within %v", u.Timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, u.Timeout, late)
	defer cancel()
	var refused error // before a byte of MQTT
	var c *conn
	release := func() bool { return true }
	o.AddBroker(addr.String())
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
		raw, err := u.open(ctx, addr)
		if err != nil {
			refused = err
			return nil, err
		}
		c = newConn(raw, u.Timeout)
		release = context.AfterFunc(ctx, func() { c.abort(context.Cause(ctx)) })
		return c, nil
	})
	client := paho.NewClient(o)
	prepare(client)
	token := client.Connect()
	<-token.Done() // ctx ends it
	stopped := !release()
	switch err := token.Error(); {
	case refused != nil:
		return nil, nil, refused
	case err != nil:
		return nil, nil, u.explainLogin(addr, err, late)
	case stopped:
		client.Disconnect(0)
		return nil, nil, context.Cause(ctx)
	}
	return client, c, nil
}

// open makes the connection below MQTT.
func (u *uplink) open(ctx context.Context, addr *url.URL) (net.Conn, error) {
	var conf *tls.Config
	if addr.Scheme == "mqtts" {
		var err error
		if conf, err = u.tlsConfig(addr.Hostname()); err != nil {
			return nil, &gatepost.Fault{Class: gatepost.Misconfigured, Err: err}
		}
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr.Host)
	if err != nil {
		return nil, explainDial(ctx, err, u.Timeout)
	}
	tcp := newTCPConn(raw.(*net.TCPConn))
	if conf == nil {
		return tcp, nil
	}
	c := tls.Client(tcp, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error is the one that counts
		return nil, explainTLS(ctx, err, u.Timeout)
	}
	return c, nil
}

func (u *uplink) tlsConfig(host string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if u.ServerName != "" {
		conf.ServerName = u.ServerName
	}
	if u.CAFile != "" {
		pem, err := os.ReadFile(u.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: %s holds no certificate in PEM form", u.CAFile)
		}
	}
	if u.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(u.CertFile, u.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file, key_file: %w", err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}

func explainDial(ctx context.Context, err error, timeout time.Duration) error {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return &gatepost.Fault{Err: fmt.Errorf("no such host: %s", dns.Name), Hint: "check the host's name in url, and that the board has a working DNS server"}
		}
		return &gatepost.Fault{Err: fmt.Errorf("the name %s could not be looked up: %s", dns.Name, dns.Err), Hint: "is the board's network up, and its DNS server right?"}
	}
	switch {
	case ctx.Err() != nil || isTimeout(err):
		return &gatepost.Fault{Err: fmt.Errorf("no answer within %v", timeout), Hint: "check address and port; a firewall may be dropping the packets"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &gatepost.Fault{Err: errors.New("connection refused"), Hint: "nothing listens there: is the broker running, and is the port right?"}
	}
	if op, ok := errors.AsType[*net.OpError](err); ok { // without the address, which the caller names
		return op.Err
	}
	return err
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

func explainTLS(ctx context.Context, err error, timeout time.Duration) error {
	fault := func(hint, format string, args ...any) error {
		return &gatepost.Fault{Class: gatepost.Misconfigured, Hint: hint, Err: fmt.Errorf(format, args...)}
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		cert, now := invalid.Cert, time.Now()
		const day = "2006-01-02"
		hint := "the board's clock says " + now.UTC().Format(day) + "; if that is wrong, set it, else renew the broker's certificate"
		if now.Before(cert.NotBefore) {
			return fault(hint, "the broker's certificate is not valid before %s", cert.NotBefore.UTC().Format(day))
		}
		return fault(hint, "the broker's certificate expired on %s", cert.NotAfter.UTC().Format(day))
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fault("set ca_file to the certificate of the authority that signed the broker's",
			"the broker's certificate is signed by an unknown authority")
	}
	if wrong, ok := errors.AsType[x509.HostnameError](err); ok {
		names := wrong.Certificate.DNSNames
		for _, ip := range wrong.Certificate.IPAddresses {
			names = append(names, ip.String())
		}
		return fault("put the certificate's name into url, or set server_name",
			"the broker's certificate is for %q, not for %s", names, wrong.Host)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fault("write mqtt:// in url, or use the broker's TLS port, usually 8883", "that port does not speak TLS")
	}
	if alert := remoteAlert(err); alert != nil {
		return alert
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fault("see ca_file and server_name, and check the board's clock", "the broker's certificate is not accepted: %w", err)
	}
	switch {
	case ctx.Err() != nil || isTimeout(err):
		return &gatepost.Fault{Err: fmt.Errorf("connected, but the TLS handshake was not answered within %v", timeout),
			Hint: "a port without TLS wants mqtt:// in url"}
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return &gatepost.Fault{Err: errors.New("the connection was closed during the TLS handshake"), Hint: "a port without TLS wants mqtt:// in url"}
	}
	return fmt.Errorf("TLS handshake: %w", err)
}

// remoteAlert is for what the broker says of us during the handshake or, with TLS 1.3, right after it; nil where err is
// something else. Package tls has no exported type for it.
func remoteAlert(err error) error {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return nil
	}
	return &gatepost.Fault{Class: gatepost.Misconfigured, Err: fmt.Errorf("the broker refused the TLS connection: %w", op.Err),
		Hint: "where the broker asks for a client certificate, see cert_file and key_file, and check the clocks of board and broker"}
}

// explainLogin is for a CONNECT that was not accepted.
func (u *uplink) explainLogin(addr *url.URL, err, late error) error {
	fault := func(hint, format string, args ...any) error {
		return &gatepost.Fault{Class: gatepost.Misconfigured, Hint: hint, Err: fmt.Errorf(format, args...)}
	}
	switch {
	case errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword), errors.Is(err, packets.ErrorRefusedNotAuthorised):
		if u.Username == "" {
			return fault("set username and password, or password_file, as the broker knows them",
				"the broker refused the login without a username")
		}
		return fault("check username and password, and that the broker's ACL lets this user in",
			"the broker refused the login of %q", u.Username)
	case errors.Is(err, packets.ErrorRefusedIDRejected):
		return fault("set client_id to one that the broker allows", "the broker refused the client id %q", u.ClientID)
	case errors.Is(err, packets.ErrorRefusedBadProtocolVersion):
		return fault("enable MQTT 3.1.1 in the broker", "the broker does not speak MQTT 3.1.1")
	case errors.Is(err, packets.ErrorRefusedServerUnavailable):
		return errors.New("the broker says that it is unavailable for now")
	case errors.Is(err, late), isTimeout(err):
		return &gatepost.Fault{Err: late, Hint: otherScheme(addr)}
	}
	if garbage, ok := errors.AsType[*notMQTTError](err); ok {
		return fault(otherScheme(addr), "%w", garbage)
	}
	if odd, ok := errors.AsType[protocolError](err); ok {
		return odd
	}
	if alert := remoteAlert(err); alert != nil {
		return alert
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return &gatepost.Fault{Err: errors.New("the connection was closed without an answer to the login"), Hint: otherScheme(addr)}
	}
	return fmt.Errorf("login: %w", err)
}

func otherScheme(addr *url.URL) string {
	if addr.Scheme == "mqtts" {
		return "check the port; MQTT with TLS is usually 8883"
	}
	return "check the port; MQTT is usually 1883, and a port with TLS wants mqtts:// in url"
}
