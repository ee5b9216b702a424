package mqtt

import (
	"net"

	"golang.org/x/sys/unix"
)

// quickAck makes the kernel acknowledge what was received without its usual delay. Without it all still works, slower,
// so errors do not matter.
func quickAck(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) })
}
