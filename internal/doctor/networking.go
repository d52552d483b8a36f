package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/network"
)

// inNewNetNS runs f on a thread in a fresh network namespace. The thread is never given back to the Go runtime, so that
// nothing else can run in that namespace; it and the namespace end with f.
func inNewNetNS(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("create network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

func checkNetNS(context.Context, *Config) Check {
	err := inNewNetNS(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "tartdoctor0"}, PeerName: "tartdoctor1"}
		if err := h.LinkAdd(pair); err != nil {
			return fmt.Errorf("create a pair of virtual devices: %w", err)
		}
		return nil
	})
	if err != nil {
		return Check{Status: Fail, Detail: err.Error(), Fix: "run as root with CAP_NET_ADMIN and CAP_SYS_ADMIN, and load the veth module (modprobe veth)"}
	}
	return Check{Status: OK, Detail: "can be created, with virtual devices in them"}
}

// checkNFTables puts the rules that sandboxes are kept by into a namespace of its own.
func checkNFTables(context.Context, *Config) Check {
	if err := network.ProbeRules(); err != nil {
		return Check{Status: Fail, Detail: "rules cannot be set: " + err.Error(), Fix: "run as root, and load the modules: modprobe -a nf_tables nft_ct nft_nat nft_masq"}
	}
	return Check{Status: OK, Detail: "the egress rules can be set"}
}

func checkForwarding(_ context.Context, c *Config) Check {
	switch v := c.read("/proc/sys/net/ipv4/ip_forward"); v {
	case "1":
		return Check{Status: OK, Detail: "on"}
	case "0":
		return Check{Status: OK, Detail: "off; it is switched on when the first sandbox gets a network"}
	default:
		return Check{Status: Warn, Detail: "net.ipv4.ip_forward cannot be read", Fix: "mount /proc"}
	}
}

// checkForwardPolicy finds firewalls that drop what they do not know.
func checkForwardPolicy(context.Context, *Config) Check {
	found, err := network.ForwardDroppers()
	if err != nil {
		return Check{Status: Warn, Detail: err.Error(), Fix: "run as root"}
	}
	if len(found) > 0 {
		return Check{Status: Warn, Detail: fmt.Sprintf("dropped by default in %s (Docker and ufw do that): sandboxes may not reach the internet", strings.Join(found, ", ")),
			Fix: "accept traffic of interfaces named tart* there, both ways (Docker: in DOCKER-USER; ufw: ufw route allow)"}
	}
	return Check{Status: OK, Detail: "nothing drops forwarded traffic by default"}
}

// checkRange finds addresses and routes of the host inside the range that sandboxes get theirs from.
func checkRange(_ context.Context, c *Config) Check {
	if !c.Range.IsValid() {
		return Check{Status: OK, Detail: "not configured"}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // routes of sandboxes come and go; the others are what counts
		return Check{Status: Warn, Detail: "list routes: " + err.Error(), Fix: "run as root"}
	}
	for _, r := range routes {
		dst, ok := prefix(r.Dst)
		if !ok || dst.Bits() == 0 || !dst.Overlaps(c.Range) {
			continue
		}
		name := "?"
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			name = l.Attrs().Name
		}
		if strings.HasPrefix(name, "tart") {
			continue // a slot of ours
		}
		return Check{Status: Warn, Detail: fmt.Sprintf("%s overlaps the route to %s by %s", c.Range, dst, name),
			Fix: "set network.base in the configuration to a range that is free"}
	}
	return Check{Status: OK, Detail: c.Range.String() + " is free"}
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), ok
}
