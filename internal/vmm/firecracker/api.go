package firecracker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
)

// mostAnswer bounds what is read of an answer: the monitor is not trusted once its guest runs. The longest there is, a
// description of a machine with all its devices, has 4 KiB.
const mostAnswer = 256 << 10

// Client speaks to one monitor over its API socket. It opens a connection for each call, which costs 0.1 ms, and so keeps nothing open
// to a process that may stop answering.
type Client struct {
	dir     *os.File // the folder of the socket: paths in it may be longer than a socket's address
	name    string
	pid     int // of the monitor; 0 when it is not known yet
	version version
}

// Fault is a call that the monitor refused.
type Fault struct {
	Call    string
	Status  int
	Message string
}

func (f *Fault) Error() string { return f.Call + ": " + f.Message }

// dial connects to the socket and tells which process listens there.
func (c *Client) dial(ctx context.Context) (net.Conn, int, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(int(c.dir.Fd()))+"/"+c.name)
	if err != nil {
		return nil, 0, err
	}
	pid, err := peer(conn.(*net.UnixConn))
	if err != nil {
		conn.Close()
		return nil, 0, err
	}
	return conn, pid, nil
}

func peer(conn *net.UnixConn) (pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// call sends one request and decodes the answer into out, when there is one. The monitor's refusal is a *Fault.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	name := method + " " + path
	conn, pid, err := c.dial(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer conn.Close()
	if c.pid != 0 && pid != c.pid { // the monitor could have put another name in place of its socket
		return fmt.Errorf("%s: process %d listens in place of the monitor", name, pid)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	answer, status, err := exchange(conn, method, path, in)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	if status/100 != 2 {
		var f struct {
			Message string `json:"fault_message"`
		}
		if json.Unmarshal(answer, &f) != nil || f.Message == "" {
			f.Message = strconv.Itoa(status)
		}
		return &Fault{Call: name, Status: status, Message: linux.Printable(f.Message)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: read answer: %w", name, err)
	}
	return nil
}

func exchange(conn net.Conn, method, path string, in any) (answer []byte, status int, err error) {
	var body []byte
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return nil, 0, err
		}
	}
	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n", method, path)
	if in != nil {
		fmt.Fprintf(&head, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	head.WriteString("\r\n")
	head.Write(body)
	if _, err := conn.Write(head.Bytes()); err != nil {
		return nil, 0, err
	}
	limited := &io.LimitedReader{R: conn, N: mostAnswer}
	res, err := http.ReadResponse(bufio.NewReader(limited), &http.Request{Method: method})
	if err == nil {
		defer res.Body.Close()
		answer, err = io.ReadAll(res.Body)
	}
	if err != nil && limited.N <= 0 {
		err = errors.New("the answer is too long")
	}
	if err != nil {
		return nil, 0, err
	}
	return answer, res.StatusCode, nil
}
