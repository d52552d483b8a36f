package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNewNetNS runs f on a thread in a fresh network namespace. The thread is never given back to the Go runtime, so that
// nothing else can run in that namespace; it and the namespace end with f.
func inNewNetNS(f func(ns *os.File) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("create network namespace: %w", err)
			}
			ns, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return fmt.Errorf("open network namespace: %w", err)
			}
			defer ns.Close()
			return f(ns)
		}()
	}()
	return <-done
}

func checkNetNS(context.Context, *Config) Check {
	err := inNewNetNS(func(*os.File) error {
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

// checkNFTables makes the kinds of things that egress rules are made of: a table with a forward chain, a set with
// timeouts and intervals, address translation, a rule that looks the set up.
func checkNFTables(context.Context, *Config) Check {
	err := inNewNetNS(func(ns *os.File) error {
		c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "tartarus-doctor"})
		chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
		nat := c.AddChain(&nftables.Chain{Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		set := &nftables.Set{Table: table, Name: "pinned", KeyType: nftables.TypeIPAddr, HasTimeout: true, Interval: true}
		if err := c.AddSet(set, nil); err != nil {
			return fmt.Errorf("add set: %w", err)
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
		c.AddRule(&nftables.Rule{Table: table, Chain: nat, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(1)},
			&expr.Masq{},
		}})
		return c.Flush()
	})
	if err != nil {
		return Check{Status: Fail, Detail: "rules cannot be set: " + err.Error(), Fix: "load the modules: modprobe -a nf_tables nft_ct nft_nat nft_masq"}
	}
	return Check{Status: OK, Detail: "tables, sets and address translation work"}
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

// checkForwardPolicy finds firewalls that drop what they do not know: what one chain drops no other can save.
func checkForwardPolicy(context.Context, *Config) Check {
	c, err := nftables.New()
	if err != nil {
		return Check{Status: Warn, Detail: err.Error(), Fix: "run as root"}
	}
	chains, err := c.ListChains()
	if err != nil {
		return Check{Status: Warn, Detail: "list chains: " + err.Error(), Fix: "run as root"}
	}
	for _, ch := range chains {
		if ch.Hooknum == nil || ch.Policy == nil || ch.Table == nil || strings.HasPrefix(ch.Table.Name, "tartarus") {
			continue
		}
		if *ch.Hooknum == *nftables.ChainHookForward && *ch.Policy == nftables.ChainPolicyDrop && ch.Table.Family != nftables.TableFamilyBridge {
			return Check{Status: Warn, Detail: fmt.Sprintf("chain %s of table %s drops forwarded traffic by default (Docker and ufw do): sandboxes may not reach the internet", ch.Name, ch.Table.Name),
				Fix: "accept traffic of interfaces named tart* in that chain, both ways (Docker: in DOCKER-USER; ufw: ufw route allow)"}
		}
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
