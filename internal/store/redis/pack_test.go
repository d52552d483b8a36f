package redis

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

func usual() tartarus.Sandbox {
	at := time.Date(2027, 3, 4, 5, 6, 7, 891234567, time.UTC)
	return tartarus.Sandbox{
		Spec: tartarus.Spec{
			ID: "i20nelkq50o9xa64igker", Tenant: "default", TemplateID: "benchtemplate0000000", Template: "bench",
			Resources: tartarus.Resources{VCPU: 1, MemoryMB: 128, DiskMB: 1024}, Timeout: time.Hour,
		},
		Node: "n00001", Phase: tartarus.Running, Driver: "gvisor", Tier: tartarus.TierUserKernel, CreatedAt: at, StartedAt: at, Deadline: at.Add(time.Hour), Revision: 2,
	}
}

// stored is what the script makes of a sandbox.
func stored(t *testing.T, sb tartarus.Sandbox) string {
	t.Helper()
	body, err := packSandbox(sb)
	if err != nil {
		t.Fatal(err)
	}
	return "2|" + "3|" + "abc" + string(body)
}

func TestPack(t *testing.T) {
	large, queued := usual(), usual()
	queued.Phase = tartarus.Queued
	large.Metadata = map[string]string{"a": strings.Repeat("x", 100_000), "\x00": "\x01"}
	for _, sb := range []tartarus.Sandbox{usual(), {}, large, queued} {
		got, err := unpackSandbox(stored(t, sb))
		if err != nil || !reflect.DeepEqual(got, sb) {
			t.Errorf("got %+v, want %+v, %v", got, sb, err)
		}
	}
	plain, err := json.Marshal(usual())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(stored(t, usual())); n > len(plain)*2/5 {
		t.Errorf("the usual sandbox takes %d bytes, and its JSON %d", n, len(plain))
	}
}

// TestPackedBefore reads what earlier versions packed: it must go on to be readable.
func TestPackedBefore(t *testing.T) {
	got, err := unpackSandbox(packedBefore)
	if err != nil || !reflect.DeepEqual(got, usual()) {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(packedBefore)
	for _, s := range []string{"", "|", "1|2|", "1|-1|", "1|3|abcz", "1|99999999999999999999|x", "1|0|q{}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := unpackSandbox(s); err != nil && !tartarus.Is(err, tartarus.Corrupt) {
			t.Errorf("%q: %v", s, err)
		}
	})
}

const packedBefore = "2|3|abcz(\xb5/\xfdA\x00\x01\xe8\x00\x05\x04\x00\x92D\x10\x16\x90W\x01{\t\xbbj6Z\xa4\xb7\x19\x99$$%5=\x8d\xbb;AS\xfb4\xafђ\x10p\xae\xfa\x8a\x1f\xec\x8999\xe5\xffgK\xb8\x9c\x84\xcb\x1d\xe9c\xb1\xfd\xb1\u0604a{\x1d\xa98\x1b\x04l\xf1\x1a\x15\x00\xebk\x03@\xef)-\x80\fP\x89@H\x06\xae/z\xe9\v\x16\f\xe2\x00\xd8\xee\x05q\x13\v£\n\x02\xbc\x18\x84\x82g\x10$a\x90~e\x18\xc1\x80 \b\x81\xc0\xe0\tqK\xff. "

// TestFiled holds that no two sandboxes are in one set whose names differ in bytes that separate names.
func TestFiled(t *testing.T) {
	sb := usual()
	seen := map[string]string{}
	for _, name := range []string{"a", "a\x00", "a\x01", "a\x01\x02", "a\x00b", "a\x01\x01", ""} {
		sb.Tenant, sb.Node = name, name
		sb.Metadata = map[string]string{name: name}
		for _, set := range sets(sb) {
			if other, ok := seen[set]; ok && other != name && set != everySet() {
				t.Errorf("%q and %q are both in %q", name, other, set)
			}
			if seen[set] = name; strings.Contains(set, "\x00") {
				t.Errorf("%q has a zero byte", set)
			}
		}
	}
}
