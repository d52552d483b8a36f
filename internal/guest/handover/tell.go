package handover

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// repeat is how often a frame is sent again: the guest's first milliseconds are the likeliest to lose one.
const repeat = 5 * time.Millisecond

// Tell makes the guest behind device, in the network namespace file ns, the machine m, and returns when it has said that it is. It
// is for a guest just restored, which still has the address that it had when it was saved. The caller's deadline is its own.
func Tell(ctx context.Context, ns, device string, m Machine) error {
	if err := m.Validate(); err != nil {
		return err
	}
	if m.Interface == nil {
		return tartarus.Errorf(tartarus.Invalid, "a guest without a network cannot be told anything")
	}
	body, err := m.body()
	if err != nil {
		return err
	}
	s, from, err := openSocket(ns, device)
	if err != nil {
		return fmt.Errorf("reach guest on %s: %w", device, err)
	}
	defer s.Close()
	f := frame{kind: tell, body: body}
	rand.Read(f.nonce[:])
	out, err := f.encode(from)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, MaxFrame)
	for {
		// A device that is not up yet, or whose queue is full, is tried again.
		_, sendErr := s.Write(out)
		if err := s.SetReadDeadline(time.Now().Add(repeat)); err != nil {
			return err
		}
		for {
			n, err := s.Read(buf)
			if ctx.Err() != nil {
				return tartarus.Errorf(tartarus.Deadline, "the guest did not take its new address on: %w", errors.Join(ctx.Err(), sendErr))
			}
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, unix.ENETDOWN) {
				break
			}
			if err != nil {
				return fmt.Errorf("hear from guest: %w", err)
			}
			if in, ok := parse(buf[:n]); ok && in.kind == done && in.nonce == f.nonce {
				return nil
			}
		}
	}
}

// openSocket opens a packet socket on a device of another namespace. It hears every frame that comes in through it, also those that a
// bridge takes over.
func openSocket(ns, device string) (*os.File, net.HardwareAddr, error) {
	type result struct {
		f    *os.File
		from net.HardwareAddr
		err  error
	}
	opened := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine and its namespace with it
		f, from, err := openInside(ns, device)
		opened <- result{f, from, err}
	}()
	r := <-opened
	return r.f, r.from, r.err
}

func openInside(ns, device string) (*os.File, net.HardwareAddr, error) {
	n, err := os.Open(ns)
	if err != nil {
		return nil, nil, err
	}
	defer n.Close()
	if err := unix.Setns(int(n.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, nil, fmt.Errorf("enter network namespace: %w", err)
	}
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, nil, err
	}
	from := link.HardwareAddr
	if len(from) != 6 {
		from = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	}
	f, err := Listen(link.Index, unix.ETH_P_ALL)
	return f, from, err
}

// Listen opens a packet socket on a device of this namespace for frames of one protocol.
func Listen(index, protocol int) (*os.File, error) {
	swapped := uint16(protocol>>8 | protocol<<8)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swapped, Ifindex: index}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind packet socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "packet"), nil
}
