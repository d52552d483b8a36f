package redis

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/tartarus-sandbox/tartarus"
)

// Sandboxes are most of what the registry holds, and look much alike: compressed with what they have in common known beforehand, the usual one is a
// third of its JSON.

// The first byte of a packed sandbox says how it was packed. What is behind one never changes: a better dictionary is another
// packing beside these.
const (
	plain      = 'j' // JSON as it is: of what waits to be started, which is to be written again in a moment
	compressed = 'z' // zstd with inCommon
)

// inCommon is the dictionary of what is compressed: zstd refers to it for whatever stands there, best at its end.
const inCommon = `"runtime":"firecracker","runtime":"gvisor","runtime":"qemu","requestID":"","snapshotID":"","confined":"","heat":"inferno","heat":"hot","heat":"warm",` +
	`"volumes":[{"id":"","name":"","path":"/"}],"identity":{"":{"audience":"","type":""}},"env":{"":""},"metadata":{"":""},"buildID":"",` +
	`"allow":["0.0.0.0/0"],"deny":["0.0.0.0/0"],"dns":["1.1.1.1"],"proxy":{"address":""},"transforms":{},"maskRequestHost":"","httpsPorts":[443],` +
	`"lifecycle":{"pauseOnTimeout":true,"pauseMemory":true,"autoResume":true,"grace":0,"maxGrace":0,"checkpoint":true,"exportLogs":true,"awake":true},` +
	`"phase":"queued","phase":"starting","phase":"pausing","phase":"paused","phase":"snapshotting","phase":"stopping","phase":"stopped","phase":"failed",` +
	`"reason":"user","reason":"timeout","reason":"idle","reason":"oom","reason":"crashed","reason":"policy","reason":"drained","reason":"node-lost","reason":"start",` +
	`"message":"","endedAt":"2026-01-01T00:00:00.000000000Z","ending":{},"cpu":1000000000,"diskOnly":true,"agentLost":true,"quarantine":{},` +
	`"driver":"qemu","tier":"emulated-vm","driver":"firecracker","tier":"hardware-vm",` +
	`{"id":"i","tenant":"default","templateID":"base","template":"base","resources":{"vcpu":1,"memoryMB":1024,"diskMB":1024,"pids":1024},` +
	`"network":{"internet":true,"publicTraffic":true},"lifecycle":{},"timeout":300000000000,"secrets":{"agentToken":"","trafficToken":""},"heat":"cold",` +
	`"node":"node","phase":"running","driver":"gvisor","tier":"user-kernel","createdAt":"2026-01-01T00:00:00.000000000Z",` +
	`"startedAt":"2026-01-01T00:00:00.000000000Z","deadline":"2026-01-01T00:00:00.000000000Z","revision":1}`

// inCommonID is the dictionary's number in what was packed with it.
const inCommonID = 1

// maxUnpacked bounds what a packed sandbox is believed to hold: several times what the API lets into one.
const maxUnpacked = 8 << 20

var packer = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderDictRaw(inCommonID, []byte(inCommon)), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(4), zstd.WithWindowSize(64<<10))
	if err != nil {
		panic(err) // of constants
	}
	return e
})

var unpacker = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderDictRaw(inCommonID, []byte(inCommon)), zstd.WithDecoderConcurrency(4), zstd.WithDecoderMaxMemory(maxUnpacked))
	if err != nil {
		panic(err) // likewise
	}
	return d
})

func packSandbox(sb tartarus.Sandbox) ([]byte, error) {
	body, err := json.Marshal(sb)
	if err != nil {
		return nil, fmt.Errorf("encode sandbox %s: %w", sb.ID, err)
	}
	if sb.Phase == tartarus.Queued {
		return append([]byte{plain}, body...), nil
	}
	return packer().EncodeAll(body, append(make([]byte, 0, len(body)), compressed)), nil
}

// unpackSandbox reads what put_sandbox.lua stored.
func unpackSandbox(text string) (sb tartarus.Sandbox, err error) {
	_, rest, _ := strings.Cut(text, "|")
	length, rest, ok := strings.Cut(rest, "|")
	n, err := strconv.Atoi(length)
	if !ok || err != nil || n < 0 || n >= len(rest) || rest[n] != plain && rest[n] != compressed {
		return sb, tartarus.Errorf(tartarus.Corrupt, "decode sandbox: it is packed in an unknown way")
	}
	body := []byte(rest[n+1:])
	if rest[n] == compressed {
		body, err = unpacker().DecodeAll(body, nil)
	}
	if err == nil {
		err = json.Unmarshal(body, &sb)
	}
	if err != nil {
		return tartarus.Sandbox{}, tartarus.Errorf(tartarus.Corrupt, "decode sandbox: %w", err)
	}
	return sb, nil
}
