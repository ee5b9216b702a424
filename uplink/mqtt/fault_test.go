package mqtt

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatepost"
	"gatepost/uplink/uplinktest"
)

// fault is what an installer sees.
type fault struct {
	Class   gatepost.Class
	Message string
	Hint    string
}

// dialFault dials and says why that failed.
func dialFault(t *testing.T, lines ...string) fault {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	link, err := newUplink(t, lines...).Dial(ctx, uplinktest.Hello("fault"), ignore)
	if err == nil {
		bye(t, link)
		t.Fatal("Dial succeeded")
	}
	return fault{gatepost.ClassOf(err), err.Error(), gatepost.HintOf(err)}
}

func (got fault) mustBe(t *testing.T, want fault) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

const hintPort = "check the port; MQTT is usually 1883, and a port with TLS wants mqtts:// in url"

func TestRefusedLogin(t *testing.T) {
	dir := t.TempDir()
	passwords := filepath.Join(dir, "passwords")
	// "right", as mosquitto_passwd writes it, is not needed: nobody gets in.
	write(t, passwords, "")
	broker := startMosquitto(t, "allow_anonymous false\npassword_file "+passwords+"\n")
	dialFault(t, "url: "+broker.url(), "username: site-042", "password: wrong").mustBe(t, fault{gatepost.Misconfigured,
		broker.url() + `: the broker refused the login of "site-042"`,
		"check username and password, and that the broker's ACL lets this user in"})
	dialFault(t, "url: "+broker.url()).mustBe(t, fault{gatepost.Misconfigured,
		broker.url() + `: the broker refused the login without a username`,
		"set username and password, or password_file, as the broker knows them"})
}

func TestRefusalCodes(t *testing.T) {
	for _, c := range []struct {
		code byte
		want fault
	}{
		{1, fault{gatepost.Misconfigured, "the broker does not speak MQTT 3.1.1", "enable MQTT 3.1.1 in the broker"}},
		{2, fault{gatepost.Misconfigured, `the broker refused the client id "site-042"`, "set client_id to one that the broker allows"}},
		{3, fault{gatepost.Temporary, "the broker says that it is unavailable for now", ""}},
		{4, fault{gatepost.Misconfigured, "the broker refused the login without a username", "set username and password, or password_file, as the broker knows them"}},
		{9, fault{gatepost.Temporary, "the broker refused with code 9, which MQTT 3.1.1 does not have", ""}},
	} {
		addr := peer(t, func(c2 net.Conn) { fmt.Fprintf(c2, "\x20\x02\x00%c", c.code); drain(c2) })
		c.want.Message = "mqtt://" + addr + ": " + c.want.Message
		dialFault(t, "url: mqtt://"+addr).mustBe(t, c.want)
	}
}

func TestBrokerThatNeverAnswers(t *testing.T) {
	addr := peer(t, drain)
	dialFault(t, "url: mqtt://"+addr, "timeout: 200ms").mustBe(t, fault{gatepost.Temporary,
		"mqtt://" + addr + ": connected, but no broker answered within 200ms", hintPort})
	dialFault(t, "url: mqtts://"+addr, "timeout: 200ms").mustBe(t, fault{gatepost.Temporary,
		"mqtts://" + addr + ": connected, but the TLS handshake was not answered within 200ms", "a port without TLS wants mqtt:// in url"})
}

func TestBrokerThatAnswersTheLoginOnly(t *testing.T) {
	addr := peer(t, func(c net.Conn) { fmt.Fprint(c, "\x20\x02\x00\x00"); drain(c) })
	dialFault(t, "url: mqtt://"+addr, "timeout: 200ms").mustBe(t, fault{gatepost.Temporary,
		"mqtt://" + addr + ": logged in, but the broker did not answer the rest within 200ms", ""})
}

func TestNotMQTT(t *testing.T) {
	addr := peer(t, func(c net.Conn) { fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\n") })
	dialFault(t, "url: mqtt://"+addr).mustBe(t, fault{gatepost.Misconfigured,
		"mqtt://" + addr + `: what answers there is not an MQTT broker: it began with "HTTP/1.1"`, hintPort})
	addr = peer(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 100)) }) // whatever it says
	dialFault(t, "url: mqtt://"+addr).mustBe(t, fault{gatepost.Temporary,
		"mqtt://" + addr + ": the connection was closed without an answer to the login", hintPort})
	dialFault(t, "url: mqtts://"+addr).mustBe(t, fault{gatepost.Temporary,
		"mqtts://" + addr + ": the connection was closed during the TLS handshake", "a port without TLS wants mqtt:// in url"})
	addr = peer(t, func(c net.Conn) { fmt.Fprint(c, "+OK POP3 ready\r\n"); drain(c) })
	dialFault(t, "url: mqtts://"+addr).mustBe(t, fault{gatepost.Misconfigured,
		"mqtts://" + addr + ": that port does not speak TLS", "write mqtt:// in url, or use the broker's TLS port, usually 8883"})
}

func TestNobodyThere(t *testing.T) {
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	dialFault(t, "url: mqtt://"+addr).mustBe(t, fault{gatepost.Temporary,
		"mqtt://" + addr + ": connection refused", "nothing listens there: is the broker running, and is the port right?"})
}

func TestNoSuchHost(t *testing.T) {
	notFound := explainDial(t.Context(), &net.OpError{Op: "dial", Err: &net.DNSError{Name: "broker.example", Err: "no such host", IsNotFound: true}}, time.Second)
	fault{gatepost.ClassOf(notFound), notFound.Error(), gatepost.HintOf(notFound)}.mustBe(t, fault{gatepost.Temporary,
		"no such host: broker.example", "check the host's name in url, and that the board has a working DNS server"})
	down := explainDial(t.Context(), &net.OpError{Op: "dial", Err: &net.DNSError{Name: "broker.example", Err: "server misbehaving"}}, time.Second)
	fault{gatepost.ClassOf(down), down.Error(), gatepost.HintOf(down)}.mustBe(t, fault{gatepost.Temporary,
		"the name broker.example could not be looked up: server misbehaving", "is the board's network up, and its DNS server right?"})
}

func TestFailOverToTheSecondURL(t *testing.T) {
	broker := startMosquitto(t, "")
	dead := fmt.Sprintf("mqtt://127.0.0.1:%d", freePort(t))
	link := connect(t, newUplink(t, fmt.Sprintf("urls: [%q, %q]", dead, broker.url())), "over", nil)
	if n, err := link.Send(t.Context(), uplinktest.Records(1, 5), false); n != 5 || err != nil {
		t.Error(n, err)
	}
	silent := "mqtt://" + peer(t, func(c net.Conn) { fmt.Fprint(c, "\x20\x02\x00\x05"); drain(c) })
	dialFault(t, fmt.Sprintf("urls: [%q, %q]", dead, silent)).mustBe(t, fault{gatepost.Temporary,
		dead + ": connection refused; " + silent + ": the broker refused the login without a username",
		"nothing listens there: is the broker running, and is the port right?"})
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ca := newCA(t)
	caFile := ca.write(t, dir, "ca", ca.cert, ca.key)
	serverCert, serverKey := ca.issue(t, "broker.test", time.Now().Add(time.Hour))
	server := ca.write(t, dir, "server", serverCert, serverKey)
	oldCert, oldKey := ca.issue(t, "broker.test", time.Date(2020, 3, 4, 0, 0, 0, 0, time.UTC))
	old := ca.write(t, dir, "old", oldCert, oldKey)
	clientCert, clientKey := ca.issue(t, "site-042", time.Now().Add(time.Hour))
	client := ca.write(t, dir, "client", clientCert, clientKey)
	other := newCA(t)
	otherFile := other.write(t, dir, "other", other.cert, other.key)

	serve := func(cert string, more string) (addr string) {
		return startMosquitto(t, fmt.Sprintf("cafile %s.crt\ncertfile %s.crt\nkeyfile %s.key\n", caFile, cert, cert)+more).addr()
	}
	open := serve(server, "")
	mutual := serve(server, "require_certificate true\n")
	expired := serve(old, "")
	ours, named := "ca_file: "+caFile+".crt", "server_name: broker.test"

	t.Run("own CA", func(t *testing.T) {
		link := connect(t, newUplink(t, "url: mqtts://"+open, ours, named), "tls", nil)
		if n, err := link.Send(t.Context(), uplinktest.Records(1, 500), false); n != 500 || err != nil {
			t.Error(n, err)
		}
	})
	t.Run("client certificate", func(t *testing.T) {
		link := connect(t, newUplink(t, "url: mqtts://"+mutual, ours, named, "cert_file: "+client+".crt", "key_file: "+client+".key"), "mtls", nil)
		if n, err := link.Send(t.Context(), uplinktest.Records(1, 5), false); n != 5 || err != nil {
			t.Error(n, err)
		}
	})
	t.Run("no client certificate", func(t *testing.T) {
		got := dialFault(t, "url: mqtts://"+mutual, ours, named)
		got.mustBe(t, fault{gatepost.Misconfigured,
			"mqtts://" + mutual + ": the broker refused the TLS connection: tls: certificate required",
			"where the broker asks for a client certificate, see cert_file and key_file, and check the clocks of board and broker"})
	})
	t.Run("wrong CA", func(t *testing.T) {
		dialFault(t, "url: mqtts://"+open, "ca_file: "+otherFile+".crt", named).mustBe(t, fault{gatepost.Misconfigured,
			"mqtts://" + open + ": the broker's certificate is signed by an unknown authority",
			"set ca_file to the certificate of the authority that signed the broker's"})
	})
	t.Run("expired", func(t *testing.T) {
		dialFault(t, "url: mqtts://"+expired, ours, named).mustBe(t, fault{gatepost.Misconfigured,
			"mqtts://" + expired + ": the broker's certificate expired on 2020-03-04",
			"the board's clock says " + time.Now().UTC().Format("2006-01-02") + "; if that is wrong, set it, else renew the broker's certificate"})
	})
	t.Run("another name", func(t *testing.T) {
		dialFault(t, "url: mqtts://"+open, ours).mustBe(t, fault{gatepost.Misconfigured,
			"mqtts://" + open + `: the broker's certificate is for ["broker.test"], not for 127.0.0.1`,
			"put the certificate's name into url, or set server_name"})
	})
	t.Run("no file", func(t *testing.T) {
		dialFault(t, "url: mqtts://"+open, "ca_file: "+dir+"/none").mustBe(t, fault{gatepost.Misconfigured,
			"mqtts://" + open + ": ca_file: open " + dir + "/none: no such file or directory", ""})
		dialFault(t, "url: mqtts://"+open, "ca_file: "+caFile+".key").mustBe(t, fault{gatepost.Misconfigured,
			"mqtts://" + open + ": ca_file: " + caFile + ".key holds no certificate in PEM form", ""})
	})
	t.Run("TLS port without TLS", func(t *testing.T) {
		got := dialFault(t, "url: mqtt://"+open)
		if got.Hint != hintPort {
			t.Errorf("%+v", got)
		}
	})
}

// peer is a far side that does as it likes with each connection. It returns its address.
func peer(t *testing.T, talk func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { talk(c); c.Close() }()
		}
	}()
	return l.Addr().String()
}

// drain reads until the other side has had enough.
func drain(c net.Conn) {
	b := make([]byte, 1024)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// ca is a certificate authority.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &ca{key: key}
	c.cert = c.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "Test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Now().Add(time.Hour),
	}, key)
	return c
}

func (c *ca) issue(t *testing.T, name string, until time.Time) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return c.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore: time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: until,
	}, key), key
}

func (c *ca) sign(t *testing.T, template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	parent := c.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// write makes NAME.crt and NAME.key in dir and returns dir/NAME.
func (c *ca) write(t *testing.T, dir, name string, cert *x509.Certificate, key *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	write(t, path+".crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	write(t, path+".key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
	return path
}

func TestConfigMistakes(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{"{}", `url: is missing: the broker's address, like "mqtts://broker.example:8883"`},
		{"url: broker.example", `url: "broker.example" is not an address like "mqtts://broker.example:8883"`},
		{"url: http://broker.example", `url: "http://broker.example" starts with "http://"; want mqtt:// or, encrypted, mqtts://`},
		{"url: mqtt://me:secret@broker.example", `url: "mqtt://me:xxxxx@broker.example": put username and password on lines of their own`},
		{"url: mqtt://broker.example/path", `url: "mqtt://broker.example/path": nothing may follow the port`},
		{"{url: 'mqtt://a', urls: ['mqtt://b']}", `urls: give url or urls, not both`},
		{"{url: 'mqtt://a', password: x}", `username: is missing; a password without one is never sent`},
		{"{url: 'mqtts://a', cert_file: x}", `cert_file: cert_file and key_file belong together: give both or neither`},
		{"{url: 'mqtt://a', ca_file: x}", `ca_file: needs a url that starts with mqtts://`},
		{"{url: 'mqtt://a', topic_root: 'a//b'}", `topic_root: "a//b" is not a topic: want words with "/" between them, no "+" or "#"`},
		{"{url: 'mqtt://a', topic_root: 'a/#'}", `topic_root: "a/#" is not a topic: want words with "/" between them, no "+" or "#"`},
		{"{url: 'mqtt://a', window: 0, batch_bytes: 10}", "window: 0 is out of range: 1 to 10000\nbatch_bytes: 10 is out of range: 1024 to 1048576"},
		{"{url: 'mqtt://a', keepalive: 1s}", "keepalive: 1s is out of range: 5s to 1h0m0s"},
	} {
		_, err := New(decoder(c.config), env(t))
		if err == nil || err.Error() != c.want {
			t.Errorf("%s\n got %v\nwant %s", c.config, err, c.want)
		}
	}
	u := newUplink(t, "url: ssl://broker.example").(*uplink)
	if got := u.addrs[0].String(); got != "mqtts://broker.example:8883" {
		t.Error(got)
	}
	if strings.Contains(fmt.Sprintf("%+v %#v", u.options, u.options), "hunter2") {
		t.Error("the password shows")
	}
}
