package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	world "github.com/tartarus-sandbox/tartarus/test/outside"
)

// outside is a network namespace that stands for the internet: a few addresses of the ranges that are kept for documentation
// (RFC 5737), each with a listener on port 80. Sandboxes reach it through the host as they would reach the world.
type outside struct {
	name      string
	addresses []string
	listeners []net.Listener
	services  *world.Servers // name server, web server with TLS, SOCKS5 server
	unlock    func()
}

// The link between host and namespace; the routes to the addresses lead over it.
const (
	outsideName = "sdkout0"
	hostEnd     = "198.51.100.1"
	farEnd      = "198.51.100.2"
)

// makeOutside needs root and iproute2. What it made it removes, whether it comes to its end or not.
func makeOutside(ctx context.Context, o options) (*outside, error) {
	if o.quick {
		return nil, nil // no quick test needs it
	}
	unlock, err := lockFile(filepath.Join(os.TempDir(), outsideName+".lock"), syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil {
		return nil, fmt.Errorf("another run has it: %w", err)
	}
	out := &outside{name: outsideName, addresses: []string{"203.0.113.10", "203.0.113.20"}, unlock: unlock}
	if err := errors.Join(out.clear(ctx), out.free()); err != nil {
		return nil, errors.Join(err, out.remove(ctx))
	}
	steps := [][]string{
		{"netns", "add", out.name},
		{"link", "add", out.name, "type", "veth", "peer", "name", "eth0", "netns", out.name},
		{"addr", "add", hostEnd + "/30", "dev", out.name},
		{"link", "set", out.name, "up"},
		{"-n", out.name, "addr", "add", farEnd + "/30", "dev", "eth0"},
		{"-n", out.name, "link", "set", "eth0", "up"},
		{"-n", out.name, "link", "set", "lo", "up"},
		{"-n", out.name, "route", "add", "default", "via", hostEnd},
	}
	for _, a := range out.addresses {
		steps = append(steps, []string{"-n", out.name, "addr", "add", a + "/32", "dev", "lo"}, []string{"route", "add", a + "/32", "via", farEnd, "dev", out.name})
	}
	for _, args := range steps {
		if err := ip(ctx, args...); err != nil {
			return nil, errors.Join(err, out.remove(ctx))
		}
	}
	if err := errors.Join(out.listen(), out.serve(ctx)); err != nil {
		return nil, errors.Join(err, out.remove(ctx))
	}
	return out, nil
}

// free makes sure that nothing on this host is in the ranges used here: documentation ranges do occur as real networks.
func (o *outside) free() error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		have, ok := a.(*net.IPNet)
		for _, want := range slices.Concat([]string{hostEnd, farEnd}, o.addresses, world.Addresses) {
			if ok && have.Contains(net.ParseIP(want)) {
				return fmt.Errorf("%s is in this host's own network %s", want, have)
			}
		}
	}
	return nil
}

// listen opens port 80 of each address inside the namespace. A socket stays in the namespace it was made in.
func (o *outside) listen() error {
	done := make(chan error)
	go func() {
		// The thread is not given back: it ends with this goroutine, and with it the change of namespace.
		runtime.LockOSThread()
		done <- func() error {
			ns, err := os.Open("/run/netns/" + o.name)
			if err != nil {
				return fmt.Errorf("enter namespace: %w", err)
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter namespace: %w", err)
			}
			for _, a := range o.addresses {
				l, err := net.Listen("tcp", net.JoinHostPort(a, "80"))
				if err != nil {
					return fmt.Errorf("listen outside: %w", err)
				}
				o.listeners = append(o.listeners, l)
				go accept(l)
			}
			return nil
		}()
	}()
	return <-done
}

// accept greets whoever connects, until the listener is closed.
func accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"))
		_ = c.Close()
	}
}

// remove takes everything down again. What is not there is no error.
func (o *outside) remove(ctx context.Context) error {
	if o == nil {
		return nil
	}
	for _, l := range o.listeners {
		_ = l.Close()
	}
	if o.services != nil {
		o.services.Close()
	}
	defer o.unlock()
	return o.clear(ctx)
}

// clear removes what stands on the host, be it of a run that was killed.
func (o *outside) clear(ctx context.Context) error {
	var errs []error
	if _, err := net.InterfaceByName(o.name); err == nil {
		errs = append(errs, ip(ctx, "link", "del", o.name))
	}
	if _, err := os.Stat("/run/netns/" + o.name); err == nil {
		errs = append(errs, ip(ctx, "netns", "del", o.name))
	}
	return errors.Join(errs...)
}

func ip(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
