package network

import (
	"bytes"
	"fmt"
	"time"

	nl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// list asks the packet filter for everything of a kind and hands the attributes of each answer to keep. Unlike the
// library's listings, one that was changed while it was read is repeated.
func list[T any](typ int, a attrs, keep func(map[uint16][]byte) (T, bool)) ([]T, error) {
	out, err := whole(func() ([]T, error) { return listOnce(typ, a, keep) })
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	return out, nil
}

func listOnce[T any](typ int, a attrs, keep func(map[uint16][]byte) (T, bool)) ([]T, error) {
	conn, err := nl.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(rulesTimeout)); err != nil {
		return nil, err
	}
	var b batch
	b.add(typ, nl.Dump, a)
	if b.err != nil {
		return nil, b.err
	}
	answers, err := conn.Execute(b.msgs[0])
	if err != nil {
		return nil, err
	}
	var out []T
	for _, m := range answers {
		if m.Header.Flags&nl.DumpInterrupted != 0 {
			return nil, netlink.ErrDumpInterrupted
		}
		if len(m.Data) < 4 {
			continue
		}
		fields, err := fieldsOf(m.Data[4:])
		if err != nil {
			return nil, err
		}
		if v, ok := keep(fields); ok {
			out = append(out, v)
		}
	}
	return out, nil
}

// fieldsOf reads attributes of which each occurs once.
func fieldsOf(b []byte) (map[uint16][]byte, error) {
	ad, err := nl.NewAttributeDecoder(b)
	if err != nil {
		return nil, err
	}
	fields := map[uint16][]byte{}
	for ad.Next() {
		fields[ad.Type()] = ad.Bytes()
	}
	return fields, ad.Err()
}

func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// named keeps the names of what belongs to our table.
func named(table, name uint16) func(map[uint16][]byte) (string, bool) {
	return func(f map[uint16][]byte) (string, bool) { return text(f[name]), text(f[table]) == tableName }
}

func tableExists() (bool, error) {
	found, err := list(unix.NFT_MSG_GETTABLE, nil, named(unix.NFTA_TABLE_NAME, unix.NFTA_TABLE_NAME))
	return len(found) > 0, err
}

func listChains() ([]string, error) {
	return list(unix.NFT_MSG_GETCHAIN, nil, named(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME))
}

func listSets() ([]string, error) {
	return list(unix.NFT_MSG_GETSET, attrs{{Type: unix.NFTA_SET_TABLE, Data: cstr(tableName)}}, named(unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME))
}

// listComments lists the comments of a chain's rules, in order; an empty one for a rule without.
func listComments(chain string) ([]string, error) {
	in := attrs{{Type: unix.NFTA_RULE_TABLE, Data: cstr(tableName)}, {Type: unix.NFTA_RULE_CHAIN, Data: cstr(chain)}}
	return list(unix.NFT_MSG_GETRULE, in, func(f map[uint16][]byte) (string, bool) {
		data := f[unix.NFTA_RULE_USERDATA]
		if len(data) < 2 || data[0] != 0 || len(data) < 2+int(data[1]) { // only ours can be there, and they have nothing else
			return "", true
		}
		return text(data[2 : 2+data[1]]), true
	})
}

// listMembers lists the keys of a set. Ends of intervals are left out.
func listMembers(set string) ([][]byte, error) {
	in := attrs{{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: cstr(tableName)}, {Type: unix.NFTA_SET_ELEM_LIST_SET, Data: cstr(set)}}
	lists, err := list(unix.NFT_MSG_GETSETELEM, in, func(f map[uint16][]byte) ([]byte, bool) {
		return f[unix.NFTA_SET_ELEM_LIST_ELEMENTS], true
	})
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	seen := map[string]bool{} // a set that grows while it is walked may show a member twice
	for _, l := range lists {
		ad, err := nl.NewAttributeDecoder(l)
		if err != nil {
			return nil, fmt.Errorf("read set %s: %w", set, err)
		}
		for ad.Next() {
			elem, err := fieldsOf(ad.Bytes())
			if err != nil {
				return nil, fmt.Errorf("read set %s: %w", set, err)
			}
			key, err := fieldsOf(elem[unix.NFTA_SET_ELEM_KEY])
			if err != nil {
				return nil, fmt.Errorf("read set %s: %w", set, err)
			}
			if k := key[unix.NFTA_DATA_VALUE]; len(elem[unix.NFTA_SET_ELEM_FLAGS]) == 0 && !seen[string(k)] {
				seen[string(k)] = true
				keys = append(keys, k)
			}
		}
		if ad.Err() != nil {
			return nil, fmt.Errorf("read set %s: %w", set, ad.Err())
		}
	}
	return keys, nil
}
