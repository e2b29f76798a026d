-- Finds out what the topic's keys are, and creates the group in each of its
-- streams. Never creates a key: its type is decided by the first publisher.
-- KEYS 1: stream   2: state   3: high   4: work   5: low
-- ARGV 1: group
-- Returns { kind, paused, states, others }: kind is none, stream, list (also for a
-- key that was a list when it last existed) or another type; paused is 1 or 0;
-- states are, for high, stream, work and low, 1 for a stream to read from, 0 for a
-- missing key, -1 for a key to leave alone; others are how many other groups read
-- each.
--
-- A lost group is created again at the floor: entries up to there were delivered
-- and acknowledged before, and must not run again.
local stream, state, group = KEYS[1], KEYS[2], ARGV[1]
local known, floor, paused = unpack(redis.call('HMGET', state, 'kind', 'floor', 'paused'))
local states, others = {}, {}

local function open(key, start)
  local kind, count, has_group = redis.call('TYPE', key).ok, 0, false
  if kind ~= 'stream' then return kind == 'none' and 0 or -1, 0 end
  -- At maxmemory Redis refuses XGROUP CREATE even for an existing group, and a
  -- worker that starts then has to read messages nevertheless.
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    if info[2] == group then has_group = true else count = count + 1 end
  end
  if not has_group then
    local created = redis.pcall('XGROUP', 'CREATE', key, group, start)
    if created.err and not string.find(created.err, 'BUSYGROUP', 1, true) then error(created) end
  end
  return 1, count
end

local kind = redis.call('TYPE', stream).ok
if (kind == 'list' or kind == 'stream') and known ~= kind then
  -- May be refused at maxmemory, which must not prevent reading: the scripts that
  -- empty a list store the kind too.
  redis.pcall('HSET', state, 'kind', kind)
elseif kind == 'none' and known == 'list' then
  kind = 'list'
end
states[1], others[1] = open(KEYS[3], '0')
-- A list of plain clients does not become a stream.
if kind == 'list' then states[2], others[2] = -1, 0 else states[2], others[2] = open(stream, floor or '0') end
states[3], others[3] = open(KEYS[4], '0')
-- Once the key is a stream, nothing is added to an empty work stream any more.
if kind == 'stream' and states[3] == 1 and redis.call('XLEN', KEYS[4]) == 0 then states[3] = -1 end
states[4], others[4] = open(KEYS[5], '0')
return { kind, paused and 1 or 0, states, others }
