-- sbs         hash: id to revision|length of filed|filed, then the sandbox, packed. One hash costs half of what a key for each would.
-- a: t: n: l: sorted sets of members in the order of listings, all of score 0, one for each phase
--
-- filed says where a sandbox stands: place, phase, and the names of its sets without the phase, between zero bytes. A member is place and id.
local P, call = KEYS[1], redis.call
local key = P .. 'sbs'

local function filed_of(old)
  local at, length, from = string.match(old, '^(%d+)|(%d+)|()')
  return at, string.sub(old, from, from + length - 1)
end

local function file(command, id, filed)
  local place, phase, sets = string.match(filed, '^(%Z*)%z(%Z*)(.*)$')
  for set in string.gmatch(sets, '%z(%Z*)') do
    if command == 'ZADD' then call('ZADD', P .. set .. phase, 0, place .. id) else call('ZREM', P .. set .. phase, place .. id) end
  end
end

