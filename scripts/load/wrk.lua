-- For wrk: asks for the keys of one kind and checks every answer. Arguments behind the address: the kind, and the
-- milliseconds after its expiry at which a value may still be served.
--
-- wrk does not say which request an answer belongs to. With one connection for each thread they alternate, so it is the
-- last one; load.sh must give as many threads as connections.
--
-- Keys and values are those of values.py and must stay the same.

local ffi = require("ffi")
ffi.cdef [[
    typedef struct { long seconds; long microseconds; } moment_of_day;
    int gettimeofday(moment_of_day *now, void *zone);
]]
local moment = ffi.new("moment_of_day[1]")

local function milliseconds()
    ffi.C.gettimeofday(moment, nil)
    return tonumber(moment[0].seconds) * 1000 + math.floor(tonumber(moment[0].microseconds) / 1000)
end

local function checksum(name)
    local result = 7
    for place = 1, #name do
        result = (result * 31 + name:byte(place)) % 4294967291
    end
    return result
end

local function value(name, length)
    local seed = checksum(name)
    length = length or 40 + seed % 1000
    local parts = { string.format("%s:%08x:", name, seed) }
    local least = #parts[1]
    for block = 0, math.ceil((length - least) / 8) - 1 do
        parts[#parts + 1] = string.format("%08x", (seed + block * 2654435761) % 4294967296)
    end
    return table.concat(parts):sub(1, math.max(length, least))
end

local function large_length(number)
    return 65536 + math.floor(number * (1048576 - 65536) / 15)
end

-- Of each kind: how many keys there are, and whether they are asked for as bytes, as JSON, or as both in turn.
local kinds = {
    hot = { keys = 32, turns = true },
    cold = { keys = 20000 },
    missing = { keys = 1000, missing = true, turns = true },
    large = { keys = 16, raw = true, length = large_length },
    expiring = { keys = 64, expires = true },
    -- As hot, but each over a connection of its own.
    fresh = { keys = 32, name = "hot", closes = true },
}

-- Lines about each thing that goes wrong, for each thread; more would only say the same.
local most_lines = 3
local lines = {}

local counters = { "answers", "cached", "living", "lost", "unexpected", "wrong", "stale" }

-- Milliseconds for which a request may be open in the end. wrk counts an answer that is late, but not one that never comes; this is
-- how long REDIS_TIMEOUT in load.sh lets one take.
local unanswered_after = 20000
local threads = {}

function setup(thread)
    threads[#threads + 1] = thread
    thread:set("number", #threads)
end

local prefix, kind, tolerance
-- The request under way: its key, and how it was asked for.
local key_number, key, raw
local known = {}

function init(arguments)
    tolerance = tonumber(arguments[2])
    kind = kinds[arguments[1]]
    prefix = "load:" .. (kind.name or arguments[1]) .. ":"
    -- Whether the last request has gone out and not been answered, and when it was made.
    open, asked = false, 0
    for _, counter in ipairs(counters) do
        _G[counter] = 0
    end
    latest = -1e9
    math.randomseed(os.time() * 100 + number)
    -- wrk takes the first thread's first request to look at it, and does not send it.
    looked_at = number ~= 1
end

-- Counts something that went wrong, and says so for as long as it is news.
local function complain(counter, text)
    _G[counter] = _G[counter] + 1
    lines[counter] = (lines[counter] or 0) + 1
    if lines[counter] <= most_lines then
        io.stderr:write(counter, ": ", text, "\n")
    end
end

function request()
    if open then
        complain("lost", "the connection was closed before " .. key .. " was answered")
    end
    open = looked_at
    looked_at = true
    key_number = math.random(0, kind.keys - 1)
    key = prefix .. key_number
    raw = kind.raw or kind.turns and not raw
    -- Before it is sent: whatever holds up wrk later makes nothing look late.
    asked = milliseconds()
    return "GET /" .. (raw and "raw" or "key") .. "/" .. key .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\n" ..
        (kind.closes and "Connection: close\r\n\r\n" or "\r\n")
end

-- The value in an answer, and whether it came from memory; nothing if it has not the form it must have.
local function contents(headers, body)
    if raw then
        return body, (headers["Cache-Status"] or ""):find("; hit", 1, true) ~= nil
    end
    for _, cached in ipairs { true, false } do
        local ending = '","fromCache":' .. tostring(cached) .. "}"
        if body:sub(1, 10) == '{"value":"' and body:sub(-#ending) == ending then
            return body:sub(11, -#ending - 1), cached
        end
    end
end

-- Whether it is a value that the expiring key has had; notes how late it is.
local function check_expiring(found)
    local digits = found:sub(1, #key + 1) == key .. ":" and found:match("^%d+", #key + 2)
    if not digits or value(key .. ":" .. digits) ~= found then
        return false
    end
    living = living + 1
    local late = asked - tonumber(digits)
    latest = math.max(latest, late)
    if late > tolerance then
        complain("stale", string.format("%s was served %d ms after its expiry", key, late))
    end
    return true
end

local function check(found)
    if kind.expires then
        return check_expiring(found)
    end
    -- Computed when it is first needed: doing it for all large ones before the start would delay that by seconds.
    known[key_number] = known[key_number] or value(key, kind.length and kind.length(key_number))
    return found == known[key_number]
end

function response(status, headers, body)
    open = false
    answers = answers + 1
    if status == 404 and (kind.missing or kind.expires) then
        if body ~= '{"error":"key not found"}' then
            complain("wrong", "404 for " .. key .. " says " .. body:sub(1, 200))
        end
    elseif status ~= 200 or kind.missing then
        complain("unexpected", status .. " for " .. key .. ": " .. body:sub(1, 200))
    else
        local found, from_memory = contents(headers, body)
        if from_memory then
            cached = cached + 1
        end
        if not found or not check(found) then
            complain("wrong", key .. " is " .. #body .. " bytes: " .. body:sub(1, 100))
        end
    end
end

function done(summary, latency)
    local fields, most = {}, -1e9
    for _, counter in ipairs(counters) do
        local sum = 0
        for _, thread in ipairs(threads) do
            sum = sum + thread:get(counter)
        end
        fields[#fields + 1] = string.format('"%s":%d', counter, sum)
    end
    local unanswered = 0
    for _, thread in ipairs(threads) do
        most = math.max(most, thread:get("latest"))
        if thread:get("open") and milliseconds() - thread:get("asked") > unanswered_after then
            unanswered = unanswered + 1
        end
    end
    fields[#fields + 1] = string.format('"unanswered":%d', unanswered)
    for _, error in ipairs { "connect", "read", "write", "timeout" } do
        fields[#fields + 1] = string.format('"%s":%d', error, summary.errors[error])
    end
    print(string.format('RESULT {"requests":%d,"seconds":%.3f,"latest":%s,"p50":%.6f,"p99":%.6f,%s}', summary.requests,
        summary.duration / 1e6, most > -1e9 and string.format("%d", most) or "null",
        latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, table.concat(fields, ",")))
end
