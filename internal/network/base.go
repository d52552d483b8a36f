package network

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The sets and maps that all slots of the host share, so that a packet's way through the rules is as long with one
// slot as with thousands. Keys are names of cables' host ends.
const (
	setRealms   = "realms"   // addresses of all slots
	setDenied   = "denied"   // the always-denied ranges
	setSources  = "sources"  // cable . address: the only source that may come in from it
	setDrops    = "drops"    // cable, counting what was dropped
	setOpen     = "open"     // cables on which whatever nobody denies may leave
	setMail     = "mail"     // cables on which port 25 may leave
	setServices = "services" // cable . port: our own listeners that it may reach, after redirection only
	setFlows    = "flows"    // cable, counting its connections
	setAsked    = "asked"    // cable, measuring its questions to our resolver
	setTried    = "tried"    // cable . address . port that it was refused in the last minute
	mapExempt   = "exempt"   // cable → chain with its exemptions from the denied ranges
	mapCustom   = "custom"   // cable → chain with its own rules
	mapDNS      = "dns"      // cable . gateway → port of the listener that gets what goes to port 53 there
	mapWeb      = "web"      // cable → port of the listener that gets what goes to ports 80 and 443
	mapTCP      = "tcp"      // cable → port of the listener that gets all TCP
)

// maxFlows bounds the connections that one sandbox has open at a time: the host's table of connections, usually 65,536 to
// 262,144, is shared by all.
const maxFlows = 4096

// Packets to our resolver that one sandbox may send: more would only fill the socket that all share. The resolver's own limit is half of it.
const (
	askRate  = 200 // a second
	askBurst = 400
)

// What of refused targets is remembered. A host full of scanners fills it; each of them has struck long before.
const (
	triedTime = time.Minute
	maxTried  = 32768
)

const (
	hookPrerouting  = unix.NF_INET_PRE_ROUTING
	hookInput       = unix.NF_INET_LOCAL_IN
	hookForward     = unix.NF_INET_FORWARD
	hookOutput      = unix.NF_INET_LOCAL_OUT
	hookPostrouting = unix.NF_INET_POST_ROUTING
)

func baseSets() []set {
	verdict, port := nftables.TypeVerdict, nftables.TypeInetService
	name := nftables.TypeIFName
	return []set{
		{name: setRealms, key: nftables.TypeIPAddr, flags: unix.NFT_SET_INTERVAL},
		{name: setDenied, key: nftables.TypeIPAddr, flags: unix.NFT_SET_INTERVAL},
		{name: setSources, key: ifAddr},
		{name: setDrops, key: name, counter: true},
		{name: setOpen, key: name},
		{name: setMail, key: name},
		{name: setServices, key: ifPort},
		{name: setFlows, key: name, flags: unix.NFT_SET_EVAL, size: 65536},
		{name: setAsked, key: name, flags: unix.NFT_SET_EVAL, size: 65536},
		{name: setTried, key: ifAddrPort, flags: unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT, size: maxTried},
		{name: mapExempt, key: name, flags: unix.NFT_SET_MAP, data: &verdict},
		{name: mapCustom, key: name, flags: unix.NFT_SET_MAP, data: &verdict},
		{name: mapDNS, key: ifAddr, flags: unix.NFT_SET_MAP, data: &port},
		{name: mapWeb, key: name, flags: unix.NFT_SET_MAP, data: &port},
		{name: mapTCP, key: name, flags: unix.NFT_SET_MAP, data: &port},
	}
}

type chain struct {
	name  string
	hook  *hook
	rules []part
}

// baseChains are the rules of the host, the same for every pool. They come before those of other tables at the
// usual priorities; what they let pass, others may still drop.
func baseChains() []chain {
	return []chain{
		// No sandbox can forge a source, or speak anything but IPv4.
		{"raw", &hook{"filter", hookPrerouting, -300}, []part{
			rule(notFromSandbox, accept),
			rule(notIPv4, jump(chainDropped)),
			rule(notUsual, jump(chainDropped)),
			rule(iif, saddr, in(setSources), accept),
			rule(jump(chainDropped)),
		}},
		// Nothing that is meant for the host, besides answers, may get as far as somebody else's port forwarding.
		{"guard", &hook{"filter", hookPrerouting, -150}, []part{
			rule(notFromSandbox, accept),
			rule(reply, accept),
			rule(toResolver, iif, tooManyQuestions, jump(chainDropped)),
			rule(toResolver, accept),
			rule(notUnicast, jump(chainDropped)),
		}},
		{"redirect", &hook{"nat", hookPrerouting, -100}, []part{
			rule(notFromSandbox, accept),
			rule(toResolver, redirect),
			rule(daddr, in(setDenied), accept), // on its way to being dropped, and counted
			rule(isTCP, dport(80), iif, lookup(mapWeb), redirect),
			rule(isTCP, dport(443), iif, lookup(mapWeb), redirect),
			rule(isTCP, iif, lookup(mapTCP), redirect),
		}},
		// The host answers a sandbox nothing but what it asked itself, and our own services.
		{"input", &hook{"filter", hookInput, -10}, []part{
			rule(notFromSandbox, accept),
			rule(established, reply, accept),
			rule(redirected, iif, port2, in(setServices), accept),
			rule(jump(chainDropped)),
		}},
		{"forward", &hook{"filter", hookForward, -10}, []part{
			rule(toSandbox, jump(chainInto)),
			rule(fromSandbox, jump(chainEgress)),
		}},
		// Others reach a sandbox only with answers.
		{chainInto, nil, []part{
			rule(fromSandbox, jump(chainDropped)),
			rule(answers, reply, accept),
			rule(drop),
		}},
		{chainEgress, nil, []part{
			rule(notICMP, dport(smtpPort), iif, notIn(setMail), jump(chainDropped)),
			rule(iif, verdicts(mapExempt)),
			rule(daddr, in(setDenied), jump(chainDropped)),
			rule(daddr, in(setRealms), jump(chainDropped)),
			rule(notUnicast, jump(chainDropped)),
			rule(jump(chainPermitted)),
		}},
		{chainPermitted, nil, []part{
			rule(isNew, iif, countFlows, jump(chainDropped)),
			rule(iif, in(setOpen), accept),
			rule(iif, verdicts(mapCustom)),
			rule(jump(chainDropped)),
		}},
		{chainDropped, nil, []part{
			rule(isIPv4, notICMP, iif, daddr2, port3, noteTried),
			rule(iif, in(setDrops), drop), // the member counts
			rule(drop),
		}},
		// The host's own chatter (multicast, router advertisements) is not for sandboxes.
		{"output", &hook{"filter", hookOutput, -10}, []part{
			rule(notToSandbox, accept),
			rule(notIPv4, drop),
			rule(notUnicast, drop),
		}},
		{"masquerade", &hook{"nat", hookPostrouting, 100}, []part{
			rule(isIPv4, notToSandbox, source, in(setRealms), masquerade),
		}},
	}
}

const (
	chainInto      = "into"
	chainEgress    = "egress"
	chainPermitted = "permitted"
	chainDropped   = "dropped"
)

// reg32after20 is the register of four bytes that follows a name of 16 and an address of 4: NFT_REG32_05.
const reg32after20 = 13

// Parts of rules. Register 1 holds the first part of a key and register 2 what is joined to it.
type part = []expr.Any

var (
	iif      = part{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}}
	oif      = part{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}}
	family   = part{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}}
	l4       = part{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}}
	ctDir    = part{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}}
	addrType = part{&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}}
	source   = network(1, 12)
	saddr    = network(2, 12) // joined to a device
	daddr    = network(1, 16)
	daddr2   = network(2, 16)
	port3    = part{&expr.Payload{DestRegister: reg32after20, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}} // joined to daddr2
	port2    = part{&expr.Payload{DestRegister: 2, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}

	fromSandbox    = rule(iif, is([]byte(namePrefix)...)) // compares only as many bytes as there are
	notFromSandbox = rule(iif, isNot([]byte(namePrefix)...))
	toSandbox      = rule(oif, is([]byte(namePrefix)...))
	notToSandbox   = rule(oif, isNot([]byte(namePrefix)...))
	isIPv4         = rule(family, is(unix.NFPROTO_IPV4))
	notIPv4        = rule(family, isNot(unix.NFPROTO_IPV4))
	notUsual       = rule(l4, isNot(protoICMP), isNot(protoTCP), isNot(protoUDP))
	notICMP        = rule(l4, isNot(protoICMP)) // after notUsual: TCP or UDP
	isTCP          = rule(l4, is(protoTCP))
	isUDP          = rule(l4, is(protoUDP))
	toResolver     = rule(notICMP, dport(53), iif, daddr2, lookup(mapDNS))

	established = ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED)
	answers     = ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	isNew       = ctBits(expr.CtKeySTATE, expr.CtStateBitNEW)
	redirected  = ctBits(expr.CtKeySTATUS, 1<<5) // IPS_DST_NAT
	reply       = rule(ctDir, is(1))             // IP_CT_DIR_REPLY

	notUnicast = rule(addrType, isNot(native(unix.RTN_UNICAST)...)) // the host's own, broadcast, multicast

	countFlows = part{&expr.Dynset{SrcRegKey: 1, SetName: setFlows, Operation: unix.NFT_DYNSET_OP_ADD,
		Exprs: []expr.Any{&expr.Connlimit{Count: maxFlows, Flags: expr.NFT_CONNLIMIT_F_INV}}}} // true when over

	noteTried = part{&expr.Dynset{SrcRegKey: 1, SetName: setTried, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: triedTime}}

	tooManyQuestions = part{&expr.Dynset{SrcRegKey: 1, SetName: setAsked, Operation: unix.NFT_DYNSET_OP_ADD,
		Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: askRate, Unit: expr.LimitTimeSecond, Burst: askBurst, Over: true}}}}

	accept     = part{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop       = part{&expr.Verdict{Kind: expr.VerdictDrop}}
	masquerade = part{&expr.Masq{FullyRandom: true}}
	redirect   = part{&expr.Redir{RegisterProtoMin: 1}}
)

func rule(parts ...part) part {
	var all part
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func network(register, offset uint32) part {
	return part{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}}
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func is(b ...byte) part    { return part{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b}} }
func isNot(b ...byte) part { return part{&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: b}} }

func dport(port uint16) part {
	return rule(part{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}, is(be16(port)...))
}

func ctBits(key expr.CtKey, bits uint32) part {
	return rule(part{&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(bits), Xor: native(0)}}, isNot(native(0)...))
}

func in(set string) part    { return part{&expr.Lookup{SourceRegister: 1, SetName: set}} }
func notIn(set string) part { return part{&expr.Lookup{SourceRegister: 1, SetName: set, Invert: true}} }
func lookup(m string) part {
	return part{&expr.Lookup{SourceRegister: 1, SetName: m, DestRegister: 1, IsDestRegSet: true}}
}
func verdicts(m string) part {
	return part{&expr.Lookup{SourceRegister: 1, SetName: m, DestRegister: 0, IsDestRegSet: true}}
}
func jump(chain string) part { return part{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

// baseVersion tells rules of one build from those of another; every base rule carries it as its comment.
func baseVersion() string {
	h := sha256.New()
	for _, s := range baseSets() {
		fmt.Fprintln(h, s.name, s.key.Name, s.flags, s.data, s.counter, s.size)
	}
	fmt.Fprintln(h, alwaysDenied)
	for _, c := range baseChains() {
		fmt.Fprintln(h, c.name, c.hook)
		for _, r := range c.rules {
			for _, e := range r {
				b, err := expr.Marshal(unix.NFPROTO_INET, e)
				fmt.Fprintln(h, b, err)
			}
		}
	}
	rules := 0
	for _, c := range baseChains() {
		rules += len(c.rules)
	}
	return tableName + " " + hex.EncodeToString(h.Sum(nil)[:6]) + versionCount(rules)
}

func versionCount(rules int) string { return fmt.Sprintf(" of %d rules", rules) }
