package network

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ProbeRules tries whether this host takes the base rules. They are put into a new network namespace that ends with the
// call, so nothing of the host changes. It needs root.
func ProbeRules() error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, and with it the namespace, ends with this goroutine. But the process's first thread never
		// ends, and /proc/self means it.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- ProbeRules() // on another one, while this one is taken
			runtime.UnlockOSThread()
			return
		}
		done <- probeRules()
	}()
	return <-done
}

func probeRules() (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open netfilter socket: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	var b batch
	b.addBase(baseVersion())
	if err := b.commit(conn); err != nil {
		return fmt.Errorf("put base rules in place: %w", err)
	}
	return nil
}

// ForwardDroppers names the chains of others that drop forwarded packets unless they know them. What one chain drops no other
// can save, so slots behind them may not reach anything.
func ForwardDroppers() ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var out []string
	for _, c := range chains {
		if c.Hooknum == nil || c.Policy == nil || c.Table == nil || strings.HasPrefix(c.Table.Name, tableName) {
			continue
		}
		if *c.Hooknum == *nftables.ChainHookForward && *c.Policy == nftables.ChainPolicyDrop && c.Table.Family != nftables.TableFamilyBridge {
			out = append(out, c.Table.Name+" "+c.Name)
		}
	}
	return out, nil
}
